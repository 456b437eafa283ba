"""The Monte-Carlo likelihood against closed forms and enumeration of all masks."""

from itertools import combinations
from types import SimpleNamespace

import pytest
import torch

from maskgrpo_plugin.diffusion.monte_carlo import conditional_log_likelihood, draw_masks

MASK = 5


def independent_model(table):
    """Each position has its own distribution (L, V), whatever else is visible."""

    def model(input_ids, attention_mask=None):
        return SimpleNamespace(logits=table.log_softmax(-1).expand(input_ids.shape[0], -1, -1))

    return model


def context_model(seed=0):
    """A position's distribution depends on every token of the row."""
    g = torch.Generator().manual_seed(seed)
    embedding = torch.randn(6, 6, generator=g, dtype=torch.float64)
    mixing = torch.randn(5, 5, generator=g, dtype=torch.float64)

    def model(input_ids, attention_mask=None):
        length = input_ids.shape[1]
        return SimpleNamespace(logits=torch.einsum("ij,bjv->biv", mixing[:length, :length], embedding[input_ids]))

    return model


def bound_by_enumeration(model, prompt, response):
    """The expectation over all masks, l uniform and the l positions uniform."""
    length = len(response)
    tokens = torch.cat([prompt, response])
    total = 0.0
    for count in range(1, length + 1):
        choices = list(combinations(range(length), count))
        for chosen in choices:
            places = torch.tensor(chosen) + len(prompt)
            noisy = tokens.clone()
            noisy[places] = MASK
            log_probs = model(noisy[None]).logits[0].log_softmax(-1)
            value = log_probs[places, tokens[places]].sum()
            total += float(value) * length / count / len(choices) / length
    return total


def test_counts_are_uniform_and_positions_too():
    masks = draw_masks(6, 600, torch.Generator().manual_seed(0))
    counts = masks.sum(-1)
    assert torch.equal(counts.bincount(minlength=7), torch.tensor([0, *[100] * 6]))
    share = masks[counts == 3].double().mean(0)
    assert ((share - 0.5).abs() < 0.2).all()
    starts = {int(draw_masks(6, 1, torch.Generator().manual_seed(s)).sum()) for s in range(60)}
    assert starts == set(range(1, 7))


def test_equal_tokens_of_an_independent_model_have_no_spread():
    table = torch.randn(1, 6, generator=torch.Generator().manual_seed(1)).expand(7, -1)
    response = torch.tensor([2, 2, 2, 2])
    got = conditional_log_likelihood(
        independent_model(table), torch.tensor([1, 0, 3]), response, mask_token_id=MASK, samples=3, batch_size=2
    )
    assert got == pytest.approx(4 * float(table[0].log_softmax(-1)[2]), rel=1e-5)


def test_a_single_token_is_exact():
    model, prompt, response = context_model(), torch.tensor([1, 0, 3]), torch.tensor([4])
    exact = model(torch.tensor([[1, 0, 3, MASK]])).logits[0, -1].log_softmax(-1)[4]
    got = conditional_log_likelihood(model, prompt, response, mask_token_id=MASK, samples=2)
    assert got == pytest.approx(float(exact), rel=1e-6)


@pytest.mark.parametrize("prompt", [[1, 4], []])
def test_the_estimate_converges_to_the_expectation_over_all_masks(prompt):
    model = context_model()
    prompt, response = torch.tensor(prompt, dtype=torch.long), torch.tensor([0, 3, 2])
    expected = bound_by_enumeration(model, prompt, response)
    estimates = torch.tensor(
        [
            conditional_log_likelihood(
                model,
                prompt,
                response,
                mask_token_id=MASK,
                samples=300,
                batch_size=300,
                generator=torch.Generator().manual_seed(seed),
            )
            for seed in range(20)
        ]
    )
    error = estimates.std() / 20**0.5
    assert float((estimates.mean() - expected).abs()) < 4 * float(error)
    assert float(error) < 0.02 * abs(expected)


def test_the_batch_size_does_not_matter():
    model, prompt, response = context_model(), torch.tensor([1]), torch.tensor([0, 3, 2, 4])

    def estimate(batch_size):
        return conditional_log_likelihood(
            model,
            prompt,
            response,
            mask_token_id=MASK,
            samples=7,
            batch_size=batch_size,
            generator=torch.Generator().manual_seed(3),
        )

    assert estimate(2) == pytest.approx(estimate(7), rel=1e-9)


@pytest.mark.parametrize(("response", "samples", "batch_size"), [([], 4, 2), ([1], 0, 2), ([1], 4, 0)])
def test_numbers_out_of_range_are_refused(response, samples, batch_size):
    with pytest.raises(ValueError, match="allowed"):
        conditional_log_likelihood(
            context_model(),
            torch.tensor([1]),
            torch.tensor(response, dtype=torch.long),
            mask_token_id=MASK,
            samples=samples,
            batch_size=batch_size,
        )
