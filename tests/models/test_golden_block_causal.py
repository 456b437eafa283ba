"""Block-causal families against what their published samplers and training code computed."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from golden_files import golden_runs, missing, tolerance
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.diffusion.samplers import build_sampler

pytestmark = pytest.mark.golden

TWO_COPIES = ["sdar_tiny", "sdar_moe_tiny", "llada2_moe_tiny", "a2d_qwen3_tiny", "a2d_qwen2_tiny", "fast_dllm_v2_tiny"]
AT_FIVE = 2e-5
FILL = 0


def load(folder, attention="sdpa"):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()


def runs_of(*families):
    return [
        pytest.param(family, *run.values, id=f"{family}-{run.id}", marks=run.marks)
        for family in families
        for run in golden_runs(family)
    ]


def block_of(golden):
    """The block length of the published mask: how many columns the first noisy one attends to."""
    return int(golden["mask"].flatten(0, -3)[0, 0].sum()) if golden["mask"].dim() > 2 else int(golden["mask"][0].sum())


def sequences_of(golden):
    """Rows of noisy and clean tokens, and the published logits of the noisy ones, packed sequences apart."""
    noisy, expected = golden["noisy_input_ids"], golden["logits_noisy"]
    clean = golden["input_ids"].repeat(len(noisy) // len(golden["input_ids"]), 1)
    for row in range(len(noisy)):
        positions = golden["concat_position_ids"][row] if "concat_position_ids" in golden else torch.tensor([0, 0])
        starts = (positions == 0).nonzero().flatten().tolist()[::2]
        bounds = [*(start // 2 for start in starts), noisy.shape[1]] if len(starts) > 1 else [0, noisy.shape[1]]
        for first, last in pairwise(bounds):
            yield noisy[row, first:last], clean[row, first:last], expected[row, first:last]


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("family", TWO_COPIES)
def test_two_copies_in_one_line_give_the_published_logits(golden_path, family, attention):
    if reason := missing(family, "two_copy.safetensors"):
        pytest.skip(reason)
    folder = golden_path(family)
    model, golden = load(folder, attention), load_file(folder / "two_copy.safetensors")
    rows = list(sequences_of(golden))
    lengths = [len(noisy) for noisy, _, _ in rows]
    noisy, clean, expected = (torch.cat(parts) for parts in zip(*rows, strict=True))
    with torch.no_grad():
        logits = model(
            noisy[None],
            clean_ids=clean[None],
            packing=Packing.from_lengths(lengths, "cpu"),
            block_length=block_of(golden),
        ).logits
    atol = tolerance(expected, AT_FIVE, model.config)
    torch.testing.assert_close(logits[0], expected, atol=atol, rtol=0)


def together(sampler, model, prompts, mask_token_id):
    """What the sampler writes to prompts of any length in one left-padded batch; (tokens, reveal steps) of each row."""
    longest = max(len(prompt) for prompt in prompts)
    batch, mask = (torch.zeros(len(prompts), longest, dtype=torch.int64) for _ in range(2))
    for row, prompt in enumerate(prompts):
        batch[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1
    output = sampler.generate(model, batch, mask, mask_token_id=mask_token_id)
    return [
        (output.sequences[row, longest - len(prompt) :], output.reveal_step[row, longest - len(prompt) :])
        for row, prompt in enumerate(prompts)
    ]


def check_rows(sampler_of, model, prompts, expected, mask_token_id, steps=None):
    """Each row alone, and rows of one length of response in one batch, with the cache and without."""
    for response in {len(out) - len(prompt) for prompt, out in zip(prompts, expected, strict=True)}:
        chosen = [n for n, prompt in enumerate(prompts) if len(expected[n]) - len(prompt) == response]
        exact, none = (
            together(sampler_of(response, cache), model, [prompts[n] for n in chosen], mask_token_id)
            for cache in ("exact", "none")
        )
        for n, row, again in zip(chosen, exact, none, strict=True):
            alone = sampler_of(response, "exact").generate(model, prompts[n][None], mask_token_id=mask_token_id)
            for sequence, reveal_step in (row, again, (alone.sequences[0], alone.reveal_step[0])):
                assert torch.equal(sequence, expected[n])
                assert torch.equal(reveal_step, row[1])
            if steps is not None:
                assert_order(row[1], steps[n])


def assert_order(reveal_step, published):
    """Published steps count within a block: they must agree with ours in what is known, and in the order of a block."""
    assert torch.equal(reveal_step < 0, published < 0)
    ours = reveal_step[reveal_step >= 0]
    assert len(ours.unique()) == int(ours.max()) + 1
    later = published[published >= 0].diff() > 0
    assert bool((ours.diff()[later] > 0).all())


@pytest.mark.parametrize(("family", "name", "settings"), runs_of("sdar_tiny", "sdar_moe_tiny"))
def test_sdars_sampler_token_for_token(golden_path, family, name, settings):
    if "overwrites_fixed_tokens_for_prompts" in settings:
        pytest.skip("the published sampler overwrites its prompts here")
    model, golden = load(golden_path(family)), load_file(golden_path(family, "decode.safetensors"))
    count, mask = len(settings["prompt_lengths"]), settings["mask_token_id"]
    strategy, stops = settings["remasking_strategy"], tuple(settings.get("stopping_criteria_idx", ()))

    def sampler_of(response, cache):
        return build_sampler(
            "block_causal",
            response_length=response,
            block_length=settings["block_length"],
            steps_per_block=settings["denoising_steps"],
            ordering="sequential" if strategy == "sequential" else "low_confidence",
            parallel="threshold" if strategy == "low_confidence_dynamic" else "none",
            threshold=settings.get("confidence_threshold", 0.9),
            temperature=settings["temperature"],
            top_k=settings["top_k"],
            stop_token_ids=stops,
            fill_token_id=FILL if stops else None,
            cache=cache,
        )

    prompts = [golden[f"prompt{n}"] for n in range(count)]
    outputs = [golden[f"{name}.{n}"] for n in range(count)]
    outputs = [out.masked_fill(out == mask, FILL) for out in outputs]
    steps = None if stops else [golden[f"{name}.{n}.step"] for n in range(count) if f"{name}.{n}.step" in golden]
    check_rows(sampler_of, model, prompts, outputs, mask, steps or None)


def llada2_sampler(settings, response, **more):
    return build_sampler(
        "block_causal",
        response_length=response,
        block_length=settings["block_length"],
        steps_per_block=settings["steps"],
        parallel="threshold",
        threshold=settings["threshold"],
        **more,
    )


@pytest.mark.parametrize(("family", "name", "settings"), runs_of("llada2_moe_tiny"))
def test_llada2s_sampler_token_for_token(golden_path, family, name, settings):
    if settings and settings["eos_id"] >= 0:
        pytest.skip("cut at the end token, see the test of it")
    model, golden = load(golden_path(family)), load_file(golden_path(family, "decode.safetensors"))

    def sampler_of(response, cache):
        return llada2_sampler(settings, response, cache=cache)

    for number in range(len(settings["prompt_lengths"])):
        prompts, outputs = list(golden[f"prompt{number}"]), list(golden[f"{name}.{number}"])
        check_rows(sampler_of, model, prompts, outputs, settings["mask_token_id"])


@pytest.mark.parametrize(("family", "name", "settings"), runs_of("llada2_moe_tiny"))
def test_llada2s_answers_end_where_the_published_ones_do(golden_path, family, name, settings):
    if settings and settings["eos_id"] < 0:
        pytest.skip("no end token")
    model, golden = load(golden_path(family)), load_file(golden_path(family, "decode.safetensors"))

    block, ended = settings["block_length"], 0
    for number in range(len(settings["prompt_lengths"])):
        for row, prompt in enumerate(golden[f"prompt{number}"]):
            published = golden[f"{name}.{number}.row{row}.generate"].flatten()
            if published[: len(prompt)].equal(prompt):
                published = published[len(prompt) :]
            whole = -(-(len(prompt) + settings["gen_length"]) // block) * block
            sampler = llada2_sampler(settings, whole - len(prompt), stop_token_ids=(settings["eos_id"],))
            ours = sampler.generate(model, prompt[None], mask_token_id=settings["mask_token_id"])
            assert ours.sequences[0, len(prompt) :][: len(published)].tolist() == published.tolist()
            ended += len(published) < settings["gen_length"]
    assert ended


@pytest.mark.parametrize(
    ("family", "name", "settings"),
    [run for run in runs_of("a2d_qwen3_tiny", "a2d_qwen2_tiny") if run.values[2].get("sampler", "bd3lm") == "bd3lm"],
)
def test_dllms_block_sampler_token_for_token(golden_path, family, name, settings):
    """Its responses begin a block; where the prompt is a multiple of the block, so do those of blocks from the row."""
    if settings.get("right_shift_logits"):
        pytest.skip("the model's logits are not shifted; the published option is for Dream")
    block = settings["block_size"]
    rows = list(range(settings.get("rows", len(settings["prompt_lengths"]))))
    whole = [row for row in rows if settings["prompt_lengths"][row] % block == 0]
    model, golden = load(golden_path(family)), load_file(golden_path(family, "decode.safetensors"))
    length = settings["max_new_tokens"]
    steps = settings.get("steps_per_block") or -(-settings["steps"] // -(-length // block))
    width = golden[name].shape[1]
    if whole:  # the run of one row ended before its last block
        assert width == length - (-max(settings["prompt_lengths"]) // block) * block

    def sampler_of(blocks_from, response, cache):
        return build_sampler(
            "block_causal",
            response_length=response,
            block_length=block,
            steps_per_block=steps,
            quota="rounded",
            cfg_scale=settings.get("cfg_scale", 0.0),
            blocks_from=blocks_from,
            cache=cache,
        )

    for blocks_from, chosen in (("response", rows), ("row", whole)):
        prompts = [golden[f"prompt{row}"] for row in chosen]
        outputs = [golden[name][row, width - length - settings["prompt_lengths"][row] :] for row in chosen]
        check_rows(partial(sampler_of, blocks_from), model, prompts, outputs, settings["mask_token_id"])


@pytest.mark.parametrize(("family", "name", "settings"), runs_of("fast_dllm_v2_tiny"))
def test_fast_dllms_sampler_token_for_token(golden_path, family, name, settings):
    if settings.get("use_block_cache"):
        pytest.skip("an approximation that changes tokens")
    model, golden = load(golden_path(family)), load_file(golden_path(family, "decode.safetensors"))
    block, stop, mask = settings["block_size"], settings["stop_token"], settings["mask_token_id"]

    def sampler_of(response, cache):
        return build_sampler(
            "block_causal",
            response_length=response,
            block_length=block,
            parallel="threshold",
            threshold=settings["threshold"],
            sub_block_length=settings["small_block_size"],
            cache=cache,
        )

    prompts = [golden[f"prompt{n}"] for n in range(len(settings["prompt_lengths"]))]
    outputs = [golden[f"{name}.{n}"] for n in range(len(prompts))]
    if stop >= 0:
        for prompt, output in zip(prompts, outputs, strict=True):
            whole = -(-len(output) // block) * block + 1
            ours = sampler_of(whole - len(prompt), "exact").generate(model, prompt[None], mask_token_id=mask)
            assert torch.equal(ours.sequences[0, : len(output)], output)
        return
    check_rows(sampler_of, model, prompts, outputs, mask)


def test_the_settings_of_every_sampler_are_read():
    """A folder of golden numbers with a setting that no test here knows would be compared with something else."""
    sdar = "gen_length block_length denoising_steps remasking_strategy confidence_threshold top_k top_p "
    sdar += "stopping_criteria_idx overwrites_fixed_tokens_for_prompts"
    dllm = "sampler max_new_tokens steps steps_per_block block_size cfg_scale right_shift_logits rows remasking "
    dllm += "eos_token_id bos_token_id pad_token_id"
    known = {
        "sdar_tiny": sdar,
        "sdar_moe_tiny": sdar,
        "llada2_moe_tiny": "gen_length block_length steps threshold eos_id eos_early_stop",
        "a2d_qwen3_tiny": dllm,
        "a2d_qwen2_tiny": dllm,
        "lladamoe_tiny": dllm,
        "fast_dllm_v2_tiny": "max_new_tokens block_size small_block_size threshold use_block_cache stop_token",
        "dream_tiny": "alg max_new_tokens steps padded rows threshold pad_token_id alg_temp eps",
    }
    only = {"remasking": "low_confidence", "alg_temp": 0, "eps": 1e-3, "top_k": 1, "top_p": 1}
    for family, names in known.items():
        for run in golden_runs(family):
            settings = run.values[1]
            assert set(settings) <= {*names.split(), "mask_token_id", "temperature", "prompt_lengths"}, settings
            assert settings.items() >= {name: only[name] for name in only if name in settings}.items(), settings
            assert family.startswith("sdar") or settings.get("temperature", 0) == 0, settings
