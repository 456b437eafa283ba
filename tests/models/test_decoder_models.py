"""Every family made of transformers' decoders: packed, read out, checkpointed and saved like LLaDA's class."""

import itertools
import json

import pytest
import torch
from family_models import BIDIRECTIONAL, FAMILIES, MASK, VOCABULARY, allowed, make_config, make_model
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.diffusion.samplers.blocks.cache import BlockCache
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.checks import linear_layer_names

LENGTH = 12


def tokens(rows=3, length=LENGTH, seed=1):
    return torch.randint(0, MASK, (rows, length), generator=torch.Generator().manual_seed(seed))


def padding():
    mask = torch.ones(3, LENGTH, dtype=torch.int64)
    mask[0, :5] = 0
    mask[1, 9:] = 0
    return mask


def written_out(model, mask):
    """The same attention without packing: every query's mask, and positions that padding does not shift."""
    return {
        "attention_mask": allowed(mask, model.block_length),
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
    }


def in_place(model, logits, mask):
    """Logits at their tokens' columns, written out."""
    if not model.logits_shift:
        return logits
    moved = logits.clone()
    for row in range(len(mask)):
        columns = mask[row].nonzero().flatten().tolist()
        for before, column in itertools.pairwise(columns):
            moved[row, column] = logits[row, before]
    return moved


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_padded_batch_has_the_logits_of_its_rows(name, attention):
    model, ids, mask = make_model(name, attention), tokens(), padding()
    with torch.no_grad():
        packed = model(ids, attention_mask=mask).logits
        expected = model(ids, **written_out(model, mask)).logits
        for n, kept in enumerate(mask.bool()):
            alone = model(ids[n, kept][None]).logits[0]
            torch.testing.assert_close(packed[n, kept], alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(packed[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=0)
    assert not packed[~mask.bool()].any()


@pytest.mark.parametrize("name", FAMILIES)
def test_chosen_positions_and_columns_equal_the_full_logits(name):
    model, ids, mask = make_model(name), tokens(), padding()
    columns = torch.tensor([[6, 8, 5], [0, 7, 8], [11, 3, 1]])
    chosen = mask.bool() & (ids % 2 == 0)
    with torch.no_grad():
        whole = in_place(model, model(ids, attention_mask=mask).logits, mask)
        at = model(ids, attention_mask=mask, logits_positions=columns).logits
        marked = model(ids, attention_mask=mask, logits_positions=chosen).logits
        scored = model(
            ids, attention_mask=mask, logits_positions=chosen, target_ids=ids[chosen], with_entropy=True, chunk_size=2
        )
        some = model(ids, attention_mask=mask, logits_positions=columns, vocab_slice=(5, 12)).logits
    expected = whole.gather(1, columns[..., None].expand(-1, -1, VOCABULARY))
    torch.testing.assert_close(at, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(some, expected[..., 5:12], atol=1e-4, rtol=0)
    torch.testing.assert_close(marked, whole[chosen], atol=1e-4, rtol=0)
    log_softmax = whole[chosen].log_softmax(-1)
    torch.testing.assert_close(scored.log_probs, log_softmax.gather(-1, ids[chosen][:, None])[:, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(scored.entropy, -(log_softmax.exp() * log_softmax).sum(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_line_has_the_values_and_gradients_of_the_padded_batch(name, checkpointing):
    model, lengths = make_model(name).train(), [3, 7, 1, 5]
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        assert all(layer.gradient_checkpointing for layer in model.get_decoder().layers)
    rows = [tokens(1, n, seed=n)[0] for n in lengths]
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(n, dtype=torch.long) for n in lengths], batch_first=True)
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    line, packing = torch.cat(rows)[None], Packing.from_lengths(lengths, "cpu")
    chosen = torch.arange(len(line[0])) % 3 != 1
    batch = torch.zeros_like(mask, dtype=torch.bool).masked_scatter(mask.bool(), chosen)
    calls = [
        (ids, written_out(model, mask), batch),
        (ids, {"attention_mask": mask}, batch),
        (line, {"packing": packing}, chosen.nonzero()[:, 0]),
    ]
    results = []
    for given, layout, places in calls:
        model.zero_grad()
        log_probs = model(given, logits_positions=places, target_ids=line[0, chosen], **layout).log_probs
        log_probs.square().sum().backward()
        results.append((log_probs.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    for log_probs, gradients in results[1:]:
        torch.testing.assert_close(log_probs, results[0][0], atol=1e-4, rtol=1e-5)
        for parameter, gradient in gradients.items():
            size = results[0][1][parameter].abs().max().item()
            torch.testing.assert_close(gradient, results[0][1][parameter], atol=1e-4 * max(size, 1), rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_hidden_state_of_a_line_is_padded_between_attentions(name):
    model, lengths = make_model(name), [3, 7, 1]
    seen = []
    for layer in model.get_decoder().layers:
        layer.register_forward_hook(lambda *args: seen.append(tuple(args[2].shape[:2])))
    line, places = tokens(1, 11), torch.tensor([2, 10])
    model(line, packing=Packing.from_lengths(lengths, "cpu"), logits_positions=places)
    assert seen == [(1, 11)] * len(seen) and len(seen) >= 2


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_flash_attention_is_told_where_rows_begin(name):
    """A stand-in with the arguments of transformers' flash attention, row by row in plain torch."""

    def flash(module, query, key, value, attention_mask, scaling, **options):
        assert attention_mask is None and not module.is_causal
        groups = module.num_key_value_groups
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        bounds = options["cu_seq_lens_q"].tolist()
        assert bounds == options["cu_seq_lens_k"].tolist()
        longest = max(b - a for a, b in itertools.pairwise(bounds))
        assert longest == options["max_length_q"] == options["max_length_k"]
        rows = [
            (query[:, :, a:b] @ key[:, :, a:b].transpose(-1, -2) * scaling).softmax(-1) @ value[:, :, a:b]
            for a, b in itertools.pairwise(bounds)
        ]
        return torch.cat(rows, dim=2).transpose(1, 2), None

    model, ids, mask = make_model(name), tokens(), padding()
    ALL_ATTENTION_FUNCTIONS.register("flash_stand_in", flash)
    try:
        with torch.no_grad():
            expected = model(ids, attention_mask=mask).logits
            model.config._attn_implementation = "flash_stand_in"
            torch.testing.assert_close(model(ids, attention_mask=mask).logits, expected, atol=1e-4, rtol=0)
            with pytest.raises(ValueError, match=r"flash_stand_in.*use sdpa"):
                model(ids, **written_out(model, mask))
    finally:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop("flash_stand_in")


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_near_float32(name):
    model, ids, mask = make_model(name, initializer_range=0.1), tokens(), padding()
    options = {"attention_mask": mask, "logits_positions": mask.bool(), "target_ids": ids[mask.bool()]}
    with torch.no_grad():
        exact = model(ids, **options).log_probs
        near = model.to(torch.bfloat16)(ids, **options).log_probs
    assert near.dtype == torch.float32
    assert (near - exact).abs().mean() < 0.03 < exact.std()


@pytest.mark.parametrize("name", FAMILIES)
def test_saving_and_loading_changes_nothing(name, tmp_path):
    model, ids = make_model(name, rope_theta=777.0), tokens()
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model) and not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.config.rope_parameters["rope_theta"] == 777.0
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_theta"] == 777.0 and written["rope_scaling"] is None and "rope_parameters" not in written
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_layer_can_be_adapted_and_nothing_else_is(name):
    model = make_model(name)
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    assert not any("gate" in n and "proj" not in n for n in linear)  # a router is no linear layer
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    found = {n.removeprefix("base_model.model.").partition(".lora_A")[0] for n, _ in adapted.named_parameters()}
    assert linear <= found
    assert {n.rpartition(".")[2] for n in linear} <= set(linear_layer_names(make_config(name)))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_wrapped_classes_of_fsdp_are_the_layers(name):
    model = make_model(name)
    classes = {type(layer).__name__ for layer in model.get_decoder().layers}
    assert classes <= set(model._no_split_modules)


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_count_from_the_rows_first_token(name):
    model, ids, mask = make_model(name), tokens(), padding()
    if not model.supports_block_attention:
        with pytest.raises(ValueError, match="block_length=3"):
            model(ids, block_length=3)
        return
    options = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0), "attention_mask": allowed(mask, 3)}
    with torch.no_grad():
        got = model(ids, attention_mask=mask, block_length=3).logits
        torch.testing.assert_close(got[mask.bool()], model(ids, **options).logits[mask.bool()], atol=1e-4, rtol=0)
        changed = ids.clone()
        changed[:, -1] = (ids[:, -1] + 1) % MASK
        before, after = (model(each, block_length=3).logits for each in (ids, changed))
    assert torch.equal(before[:, :9], after[:, :9]) and not torch.equal(before[:, 9:], after[:, 9:])
    with pytest.raises(ValueError, match="block_length=0"):
        model(ids, block_length=0)


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_a_row_of_a_sampled_batch_is_the_row_alone(name):
    model = make_model(name)
    sampler = build_sampler("semi_autoregressive", steps=8, response_length=8, block_length=4, temperature=0.0)
    prompts = [tokens(1, n, seed=n)[0] for n in (2, 6, 3)]
    ids, mask = torch.zeros(3, 6, dtype=torch.int64), torch.zeros(3, 6, dtype=torch.int64)
    for n, prompt in enumerate(prompts):
        ids[n, 6 - len(prompt) :], mask[n, 6 - len(prompt) :] = prompt, 1
    together = sampler.generate(model, ids, mask, mask_token_id=MASK).sequences[:, 6:]
    alone = [sampler.generate(model, p[None], mask_token_id=MASK).sequences[0, len(p) :] for p in prompts]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_block_cache_is_exact_at_its_first_pass_or_refused(name):
    model, ids = make_model(name), tokens()
    if not model.supports_block_cache:
        with pytest.raises(ValueError, match="cache"):
            model(ids, cache=BlockCache())
        return
    cache = BlockCache()
    columns = torch.arange(4).expand(3, 4)
    with torch.no_grad():
        expected = model(ids).logits
        whole = model(ids, cache=cache).logits
        block = model(ids[:, 4:8], cache=cache, first_column=4, logits_positions=columns).logits
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(block, expected[:, 4:8], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(BIDIRECTIONAL)))
def test_samplers_for_whole_canvases_refuse_block_causal_models(name):
    sampler = build_sampler("semi_autoregressive", steps=4, response_length=4, block_length=2, temperature=0.0)
    with pytest.raises(OptionError, match="block by block"):
        sampler.generate(make_model(name), tokens(), mask_token_id=MASK)
