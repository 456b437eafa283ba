"""Models whose logits stand one position before their token, by a stand-in that moves those of another model."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from maskgrpo_plugin.diffusion.monte_carlo import conditional_log_likelihood
from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.diffusion.shift import logits_in_place, predicting_columns
from maskgrpo_plugin.models.interface import at_columns
from maskgrpo_plugin.models.llada import LLaDAConfig, LLaDAModelLM

MASK, VOCABULARY, NOWHERE = 39, 40, 50.0


class ShiftedLLaDA(LLaDAModelLM):
    """LLaDA with each hidden state one column earlier; what stands in no token's place is NOWHERE."""

    def encode(self, inputs_embeds, layout):
        hidden = super().encode(inputs_embeds, replace(layout, columns=None))
        moved = torch.nn.functional.pad(hidden[:, 1:], (0, 0, 0, 1), value=NOWHERE)
        if layout.packing is not None:
            ends = layout.packing.boundaries[1:].long() - 1
            moved = moved.index_fill(1, ends, NOWHERE)
        return moved if layout.columns is None else at_columns(moved, layout.columns)


def make_models(**changes):
    sizes = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "mlp_hidden_size": 48, "init_std": 0.3}
    sizes |= {"vocab_size": VOCABULARY, "embedding_size": VOCABULARY, "mask_token_id": MASK} | changes
    torch.manual_seed(0)
    plain = LLaDAModelLM(LLaDAConfig(**sizes)).eval()
    shifted = ShiftedLLaDA(LLaDAConfig(**sizes, logits_shift=1)).eval()
    shifted.load_state_dict(plain.state_dict())
    return plain, shifted


class WholeLogits:
    """A callable that gives every position's logits, as they stand."""

    def __init__(self, model):
        self.model, self.logits_shift = model, model.logits_shift

    def __call__(self, input_ids, attention_mask=None):
        return SimpleNamespace(logits=self.model(input_ids, attention_mask=attention_mask).logits)


def prompts(*lengths):
    width = max(lengths)
    ids, mask = torch.zeros(len(lengths), width, dtype=torch.int64), torch.zeros(len(lengths), width).long()
    for n, length in enumerate(lengths):
        ids[n, width - length :] = torch.randint(1, MASK, (length,), generator=torch.Generator().manual_seed(n))
        mask[n, width - length :] = 1
    return ids, mask


def test_the_shift_is_read_from_the_config():
    plain, shifted = make_models()
    assert (plain.logits_shift, shifted.logits_shift) == (0, 1)


def test_logits_of_a_canvas_are_as_the_model_gives_them_and_chosen_ones_are_the_tokens():
    plain, shifted = make_models()
    ids = torch.randint(0, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(0))
    columns = torch.tensor([[1, 3, 5], [4, 2, 1]])
    with torch.no_grad():
        expected, raw = plain(ids).logits, shifted(ids).logits
        chosen = shifted(ids, logits_positions=columns).logits
    torch.testing.assert_close(raw[:, :-1], expected[:, 1:])
    torch.testing.assert_close(chosen, expected.gather(1, columns[..., None].expand(-1, -1, VOCABULARY)))
    torch.testing.assert_close(logits_in_place(raw, 1, None)[:, 1:], expected[:, 1:])


def test_the_first_token_of_a_row_reads_its_own_position():
    _, shifted = make_models()
    ids, mask = prompts(4, 6)
    first = mask.bool() & (mask.cumsum(-1) == 1)
    line, packing = ids[mask.bool()][None], Packing.from_lengths([4, 6], "cpu")
    with torch.no_grad():
        raw = shifted(ids, attention_mask=mask).logits
        batch = shifted(ids, attention_mask=mask, logits_positions=first).logits
        columns = shifted(ids, attention_mask=mask, logits_positions=torch.tensor([[2], [0]])).logits
        packed = shifted(line, packing=packing, logits_positions=torch.tensor([0, 4])).logits
        alone = shifted(ids[1:], logits_positions=first[1:]).logits
    for got in (batch, columns[:, 0], packed, logits_in_place(raw, 1, mask)[first]):
        torch.testing.assert_close(got, raw[first])
    torch.testing.assert_close(alone[0], raw[1, 0])


def test_padding_is_passed_over():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 1, 0]])
    columns = predicting_columns(mask)
    assert columns[0, 2:].tolist() == [2, 2, 3]
    assert columns[1, :3].tolist() == [0, 0, 1]
    assert columns[2, [0, 2, 3]].tolist() == [0, 0, 2]


@pytest.mark.parametrize("guidance_scale", [0.0, 1.5])
@pytest.mark.parametrize("vocab_slice", [None, (20, 39)])
def test_training_log_probs_and_gradients_equal_the_unshifted_models(guidance_scale, vocab_slice):
    ids, mask = prompts(7, 4, 5, 2)
    chosen = mask.bool() & (mask.cumsum(-1) > 1) & (torch.arange(7) >= 6)
    targets = ids[chosen][: 2 if guidance_scale else 4]
    places = chosen[mask.bool()].nonzero()[:, 0]
    options = {"target_ids": targets, "guidance_scale": guidance_scale, "vocab_slice": vocab_slice}
    calls = [
        ((ids,), {"attention_mask": mask, "logits_positions": chosen}),
        (
            (ids[mask.bool()][None],),
            {"packing": Packing.from_lengths([7, 4, 5, 2], "cpu"), "logits_positions": places},
        ),
    ]
    models, results = make_models(), []
    for model in models:
        for args, layout in calls:
            model.zero_grad()
            log_probs = model(*args, **layout, **options).log_probs
            log_probs.sum().backward()
            results.append((log_probs.detach(), model.get_input_embeddings().weight.grad.clone()))
    for log_probs, gradient in results[1:]:
        torch.testing.assert_close(log_probs, results[0][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(gradient, results[0][1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("cfg_scale", [0.0, 0.8])
def test_text_samples_equal_the_unshifted_models(whole, padded, cfg_scale):
    ids, mask = prompts(3, 6, 4) if padded else (prompts(5, 5)[0], None)
    sampler = build_sampler(
        "semi_autoregressive", steps=8, response_length=8, block_length=4, temperature=0.0, cfg_scale=cfg_scale
    )
    models = [WholeLogits(model) if whole else model for model in make_models()]
    plain, shifted = (sampler.generate(model, ids, mask, mask_token_id=MASK).sequences for model in models)
    assert torch.equal(plain, shifted)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", ["emerge", "maskgit"])
@pytest.mark.parametrize("cfg_scale", [0.0, 2.0])
def test_image_samples_equal_the_unshifted_models(whole, name, cfg_scale):
    ids, mask = prompts(3, 6)
    uncond, uncond_mask = prompts(2, 6)
    sampler = build_sampler(name, steps=4, response_length=9, cfg_scale=cfg_scale, vocab_slice=(20, 39))
    models = [WholeLogits(model) if whole else model for model in make_models()]
    plain, shifted = (
        sampler.generate(
            model,
            ids,
            mask,
            mask_token_id=MASK,
            generator=torch.Generator().manual_seed(3),
            uncond_input_ids=uncond,
            uncond_attention_mask=uncond_mask,
        ).sequences
        for model in models
    )
    assert torch.equal(plain, shifted)


@pytest.mark.parametrize("whole", [False, True])
def test_monte_carlo_likelihoods_equal_the_unshifted_models(whole):
    prompt, response = torch.tensor([4, 9]), torch.tensor([3, 7, 7, 1, 30])
    models = [WholeLogits(model) if whole else model for model in make_models()]
    plain, shifted = (
        conditional_log_likelihood(
            model, prompt, response, mask_token_id=MASK, samples=9, generator=torch.Generator().manual_seed(1)
        )
        for model in models
    )
    assert shifted == pytest.approx(plain, abs=1e-4)


def test_a_block_cache_is_refused():
    _, shifted = make_models()
    sampler = build_sampler(
        "semi_autoregressive", steps=4, response_length=4, block_length=2, temperature=0.0, cache="prefix"
    )
    with pytest.raises(ValueError, match="cache"):
        sampler.generate(shifted, torch.tensor([[1, 2]]), mask_token_id=MASK)
