"""Batches without padding: equal to the padded computation, in values and gradients, and not computed where padded."""

import itertools

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.models.llada import LLaDAConfig, LLaDAModelLM

MASK, LENGTH = 39, 12


def make_model(attention="sdpa"):
    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=32,
        n_heads=4,
        n_kv_heads=2,
        n_layers=2,
        mlp_hidden_size=48,
        vocab_size=40,
        embedding_size=40,
        mask_token_id=MASK,
        init_std=0.3,
        attn_implementation=attention,
    )
    return LLaDAModelLM(config)


def padding(side):
    mask = torch.ones(3, LENGTH, dtype=torch.int64)
    if side in ("left", "both"):
        mask[0, :5] = 0
    if side in ("right", "both"):
        mask[1, 9:] = 0
    return mask


def written_out(mask):
    """The same attention without packing: every query's mask, and positions that padding does not shift."""
    return {
        "attention_mask": mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[1], -1),
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
    }


def tokens():
    return torch.randint(0, MASK, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def test_packing_tells_where_each_token_lies():
    mask = torch.tensor([[0, 1, 1], [1, 1, 1], [1, 0, 0]])
    packing = Packing.of(mask)
    assert packing.index.tolist() == [1, 2, 3, 4, 5, 6]
    assert packing.position_ids.tolist() == [[0, 1, 0, 1, 2, 0]]
    assert packing.boundaries.tolist() == [0, 2, 5, 6] and packing.longest == 3
    rows = torch.arange(18.0).view(3, 3, 2)
    assert torch.equal(packing.unpack(packing.pack(rows)), rows * mask.unsqueeze(-1))
    columns = torch.tensor([[2, 1], [0, 2], [0, 0]])
    assert torch.equal(
        packing.pack(rows)[0, packing.pack_columns(columns)[0]].view(3, 2, 2),
        rows.gather(1, columns[..., None].expand(-1, -1, 2)),
    )
    assert Packing.of(torch.ones(2, 3)) is None


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_equal_those_of_the_padded_batch(side, attention):
    model, ids, mask = make_model(attention).eval(), tokens(), padding(side)
    columns = torch.tensor([[6, 8, 5], [0, 7, 8], [11, 3, 1]])
    with torch.no_grad():
        expected = model(ids, **written_out(mask)).logits
        got = model(ids, attention_mask=mask).logits
        given = model(ids, attention_mask=mask, packing=Packing.of(mask), logits_positions=columns).logits
        chosen = mask.bool() & (ids % 2 == 0)
        marked = model(ids, attention_mask=mask, logits_positions=chosen).logits
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=0)
    assert not got[~mask.bool()].any()
    torch.testing.assert_close(given, expected.gather(1, columns[..., None].expand(-1, -1, 40)), atol=1e-5, rtol=0)
    torch.testing.assert_close(marked, expected[chosen], atol=1e-5, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_those_of_the_padded_batch(checkpointing):
    model, ids, mask = make_model().train(), tokens(), padding("both")
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    chosen = mask.bool() & (ids % 3 == 0)
    gradients = []
    for options in ({"attention_mask": mask}, written_out(mask)):
        model.zero_grad()
        output = model(ids, logits_positions=chosen, target_ids=ids[chosen], **options)
        output.log_probs.sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-4)


def test_padding_goes_through_no_layer():
    model, ids, mask = make_model().eval(), tokens(), padding("both")
    seen = []
    hook = model.model.transformer["blocks"][0].register_forward_hook(lambda *args: seen.append(args[2].shape[:2]))
    model(ids, attention_mask=mask)
    hook.remove()
    assert seen == [(1, int(mask.sum()))]


def test_flash_attention_is_told_where_rows_begin():
    """A stand-in with the arguments of transformers' flash attention, row by row in plain torch."""

    def flash(module, query, key, value, attention_mask, scaling, is_causal, **options):
        assert attention_mask is None and not is_causal
        groups = module.num_key_value_groups
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        bounds = [options[name].tolist() for name in ("cu_seq_lens_q", "cu_seq_lens_k")]
        longest = [max(b - a for a, b in itertools.pairwise(each)) for each in bounds]
        assert longest == [options["max_length_q"], options["max_length_k"]]
        rows = []
        for (q, q_end), (k, k_end) in zip(*map(itertools.pairwise, bounds), strict=True):
            scores = query[:, :, q:q_end] @ key[:, :, k:k_end].transpose(-1, -2) * scaling
            rows.append(scores.softmax(-1) @ value[:, :, k:k_end])
        return torch.cat(rows, dim=2).transpose(1, 2), None

    ids, mask = tokens(), padding("both")
    columns = torch.tensor([[6, 8, 5], [0, 7, 8], [11, 3, 1]])
    model = make_model().eval()
    ALL_ATTENTION_FUNCTIONS.register("flash_stand_in", flash)
    try:
        with torch.no_grad():
            expected = model(ids, **written_out(mask)).logits
            model.config._attn_implementation = "flash_stand_in"
            full = model(ids, attention_mask=mask).logits
            some = model(ids, attention_mask=mask, logits_positions=columns).logits
    finally:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop("flash_stand_in")
    torch.testing.assert_close(full[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=0)
    torch.testing.assert_close(some, expected.gather(1, columns[..., None].expand(-1, -1, 40)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cfg_scale", [0.0, 0.5])
def test_a_sampler_packs_prompts_of_many_lengths_once_for_its_rows(cfg_scale):
    model = make_model().eval()
    packings = []

    class Watching:
        supports_logits_positions = supports_packing = True

        def __call__(self, ids, packing=None, **options):
            packings.append(packing)
            return model(ids, packing=packing, **options)

    sampler = build_sampler(
        "semi_autoregressive", steps=8, response_length=8, block_length=4, temperature=0.0, cfg_scale=cfg_scale
    )
    prompts = [torch.arange(1, 1 + n) for n in (2, 6, 3)]
    ids, mask = torch.zeros(3, 6, dtype=torch.int64), torch.zeros(3, 6, dtype=torch.int64)
    for n, prompt in enumerate(prompts):
        ids[n, 6 - len(prompt) :], mask[n, 6 - len(prompt) :] = prompt, 1
    together = sampler.generate(Watching(), ids, mask, mask_token_id=MASK).sequences[:, 6:]
    alone = [
        sampler.generate(model, prompt[None], mask_token_id=MASK).sequences[0, len(prompt) :] for prompt in prompts
    ]
    assert torch.equal(together, torch.stack(alone))
    assert len(packings) == 8 and None not in packings
    assert len({id(packing) for packing in packings}) == 2
