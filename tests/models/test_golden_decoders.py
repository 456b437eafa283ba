"""Families made of transformers' decoders against what their published code computed: logits, samples, folders."""

import json
import re

import pytest
import torch
from golden_files import golden_runs, missing, tolerance
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.models.lladamoe import LLaDAMoEModelLM

pytestmark = pytest.mark.golden

FULL = ["dream_tiny", "a2d_qwen3_tiny", "a2d_qwen2_tiny", "lladamoe_tiny"]
BLOCKS = ["sdar_tiny", "sdar_moe_tiny", "llada2_moe_tiny", "fast_dllm_v2_tiny"]
AT_FIVE = 2e-5
ORDERINGS = {"maskgit_plus": "low_confidence", "entropy": "entropy", "topk_margin": "margin"}
OWN_KEYS = {"_name_or_path", "attn_implementation", "dtype", "torch_dtype", "transformers_version"}


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def settings_of(folder, file):
    path = folder / file
    return json.loads(path.read_text()) if path.exists() else {}


def close(model, found, expected, where=None):
    atol = tolerance(expected, AT_FIVE, model.config)
    if where is not None:
        found, expected = found[where], expected[where]
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FULL)
def test_logits_equal_the_published_forward(golden_path, family, attention):
    folder = golden_path(family)
    model, golden = load(folder, attn_implementation=attention), load_file(folder / "golden.safetensors")
    ids, mask = golden["input_ids"], golden["attention_mask"]
    plain, padded = ("logits_unmasked", "logits") if "logits_unmasked" in golden else ("logits", "logits_padded")
    with torch.no_grad():
        close(model, model(ids).logits, golden[plain])
        close(model, model(ids, attention_mask=mask).logits, golden[padded], mask.bool())


@pytest.mark.parametrize("family", ["a2d_qwen3_tiny", "a2d_qwen2_tiny"])
def test_block_logits_equal_the_published_forward(golden_path, family):
    """Blocks count by column there and by token here: the published mask is given, and a row without padding alone."""
    folder = golden_path(family)
    model, golden = load(folder), load_file(folder / "golden.safetensors")
    ids, positions = golden["block_input_ids"], golden["block_position_ids"]
    for block in settings_of(folder, "golden.json")["blocks"]:
        mask, expected = golden[f"block{block}.mask"], golden[f"block{block}.logits"]
        with torch.no_grad():
            given = model(ids, attention_mask=mask.unsqueeze(1), position_ids=positions).logits
            own = model(ids, block_length=block).logits
        close(model, given, expected, mask.any(-1) & expected.any(-1))
        whole = mask.any(-1).all(-1)
        assert whole.any()
        close(model, own[whole], expected[whole])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", BLOCKS)
def test_block_causal_logits_equal_the_published_forward(golden_path, family, attention):
    folder = golden_path(family)
    model, golden = load(folder, attn_implementation=attention), load_file(folder / "golden.safetensors")
    first = settings_of(folder, "golden.json").get("blocks", [model.block_length])[0]
    numbers = {name: re.fullmatch(r"logits_block(\d+)|block(\d+)\.logits", name) for name in golden}
    others = {name: int(number[1] or number[2]) for name, number in numbers.items() if number}
    assert others
    for name, block in ({"logits": first} | others).items():
        with torch.no_grad():
            close(model, model(golden["input_ids"], block_length=block).logits, golden[name])
    if first == model.block_length:
        with torch.no_grad():
            close(model, model(golden["input_ids"]).logits, golden["logits"])


@pytest.mark.parametrize("family", ["a2d_qwen3_tiny", "a2d_qwen2_tiny", *BLOCKS])
def test_two_copies_under_the_published_mask_give_its_logits(golden_path, family):
    golden_path(family)
    if reason := missing(family, "two_copy.safetensors"):
        pytest.skip(reason)
    folder = golden_path(family)
    model, golden = load(folder), load_file(folder / "two_copy.safetensors")
    noisy, clean = golden["noisy_input_ids"], golden["input_ids"]
    if "concat_input_ids" in golden:
        both, positions, mask = (golden[key] for key in ("concat_input_ids", "concat_position_ids", "mask"))
        with torch.no_grad():
            logits = model(both, attention_mask=mask.unsqueeze(1), position_ids=positions).logits
        even = positions[:, 0] * 0 == 0
        even &= (positions[:, clean.shape[1]] == 0) & ((positions == 0).sum(-1) == 2)
        assert even.any()
        close(model, logits[even, : noisy.shape[1]], golden["logits_noisy"][even])
        close(model, logits[even, noisy.shape[1] :], golden["logits_clean"][even])
        return
    clean = clean.repeat(len(noisy) // len(clean), 1)
    positions = torch.arange(noisy.shape[1]).repeat(len(noisy), 2)
    mask = golden["mask"].expand(len(noisy), 1, -1, -1)
    with torch.no_grad():
        logits = model(torch.cat([noisy, clean], 1), attention_mask=mask, position_ids=positions).logits
    close(model, logits[:, : noisy.shape[1]], golden["logits_noisy"])
    if "logits_clean" in golden:
        close(model, logits[:, noisy.shape[1] :], golden["logits_clean"])


@pytest.mark.parametrize(("name", "settings"), golden_runs("dream_tiny"))
def test_dreams_sampler_token_for_token(golden_path, name, settings):
    if settings["alg"] not in ORDERINGS:
        pytest.skip(f"no rule here is {settings['alg']}")
    model = load(golden_path("dream_tiny"))
    golden = load_file(golden_path("dream_tiny", "decode.safetensors"))
    sampler = build_sampler(
        "semi_autoregressive",
        response_length=settings["max_new_tokens"],
        steps=settings["steps"],
        ordering=ORDERINGS[settings["alg"]],
        quota="dream",
        temperature=0.0,
    )
    rows = settings.get("rows", len(golden["prompts"]))
    mask = golden["attention_mask"][:rows] if settings["padded"] else None
    output = sampler.generate(model, golden["prompts"][:rows], mask, mask_token_id=settings["mask_token_id"])
    assert torch.equal(output.sequences, golden[name])


@pytest.mark.parametrize(
    ("family", "name", "settings"),
    [
        pytest.param(family, *run.values, id=f"{family}-{run.id}", marks=run.marks)
        for family in ("a2d_qwen3_tiny", "a2d_qwen2_tiny", "lladamoe_tiny")
        for run in golden_runs(family)
        if not run.values[1] or run.values[1]["sampler"] == "mdlm"
    ],
)
def test_dllms_sampler_token_for_token(golden_path, family, name, settings):
    model, golden = load(golden_path(family)), load_file(golden_path(family, "decode.safetensors"))
    model.config.logits_shift = int(settings.get("right_shift_logits", False))
    length, block = settings["max_new_tokens"], settings["block_size"]
    blocks = -(-length // block)
    sampler = build_sampler(
        "semi_autoregressive",
        response_length=blocks * block,
        steps=-(-settings["steps"] // blocks) * blocks,
        block_length=block,
        quota="rounded",
        cfg_scale=settings.get("cfg_scale", 0.0),
        temperature=0.0,
    )
    masks = torch.full((length,), settings["mask_token_id"])
    for row, prompt_length in enumerate(settings["prompt_lengths"]):
        canvas = torch.cat([golden[f"prompt{row}"], masks])[None]
        output = sampler.generate(model, canvas, mask_token_id=settings["mask_token_id"])
        assert torch.equal(output.sequences[0], golden[name][row, : prompt_length + length])


@pytest.mark.parametrize("family", FULL + BLOCKS)
def test_saving_writes_the_published_names_and_keys(golden_path, family, tmp_path):
    folder = golden_path(family)
    load(folder).save_pretrained(tmp_path)
    saved, published = load_file(tmp_path / "model.safetensors"), load_file(folder / "model.safetensors")
    assert sorted(saved) == sorted(published)
    assert all(torch.equal(saved[name], published[name]) for name in published)
    written, given = settings_of(tmp_path, "config.json"), settings_of(folder, "config.json")
    assert {key: written.get(key, "missing") for key in given if key not in OWN_KEYS} == {
        key: value for key, value in given.items() if key not in OWN_KEYS
    }


def test_lladamoe_is_read_under_the_model_type_of_llada(golden_path, tmp_path):
    folder = golden_path("lladamoe_tiny")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    published = settings_of(folder, "config.json") | {"model_type": "llada"}
    (tmp_path / "config.json").write_text(json.dumps(published))
    golden = load_file(folder / "golden.safetensors")
    model = load(tmp_path)
    assert (
        type(model) is LLaDAMoEModelLM and AutoConfig.from_pretrained(tmp_path).num_experts == published["num_experts"]
    )
    with torch.no_grad():
        close(model, model(golden["input_ids"]).logits, golden["logits"])


@pytest.mark.parametrize("family", ["lladamoe_tiny", "llada2_moe_tiny"])
def test_routers_give_the_published_logits_and_choose_the_published_experts(golden_path, family):
    folder = golden_path(family)
    model, golden = load(folder), load_file(folder / "golden.safetensors")
    seen = {}
    for number, layer in enumerate(model.model.layers):
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.register_forward_hook(lambda *args, n=number: seen.update({n: args[2]}))
            layer.mlp.experts.register_forward_pre_hook(lambda *args, n=number: seen.update({-n - 1: args[1][1]}))
    block = settings_of(folder, "golden.json").get("blocks", [None])[0]
    with torch.no_grad():
        model(golden["input_ids"], **({} if block is None else {"block_length": block}))
    numbers = [number for number in seen if number >= 0]
    assert numbers
    for number in numbers:
        logits = seen[number][0] if isinstance(seen[number], tuple) else seen[number]
        expected = golden[f"layer{number}.router_logits"]
        close(model, logits.view_as(expected), expected)
        if f"layer{number}.topk_idx" in golden:
            chosen = golden[f"layer{number}.topk_idx"]
            assert torch.equal(seen[-number - 1].sort(-1).values.view_as(chosen), chosen)
