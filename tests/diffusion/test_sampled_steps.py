"""AGRPO's steps: which may be drawn, how often, and with what weight, so that the expectation is the mean over all."""

import pytest
import torch

from maskgrpo_plugin.diffusion.estimators import Rows, build_estimator
from maskgrpo_plugin.diffusion.estimators.sampled_steps import LEAST_ENTROPY

MASK, STOP = 99, 2


def make_rows(reveal, tokens, *, copies=1, entropy=None):
    """A prompt of one token, then a response with these steps, in `copies` rows with keys of their own."""
    reveal = torch.tensor([-1, *reveal]).expand(copies, -1)
    tokens = torch.tensor([5, *tokens]).expand(copies, -1)
    entropy = torch.tensor([0.0, *(entropy or [1.0] * (tokens.shape[1] - 1))]).expand(copies, -1)
    response = torch.ones_like(tokens, dtype=torch.bool)
    response[:, 0] = False
    return Rows(
        tokens=tokens,
        response=response,
        prompt=~response,
        attended=torch.ones_like(response),
        keys=torch.arange(copies),
        mask_token_id=MASK,
        stop_token_ids=(STOP,),
        reveal_step=reveal,
        sampler_entropy=entropy,
    )


@pytest.mark.parametrize(("reveal", "tokens", "steps"), [
    ([0, 1, 1, 0], [6, 7, 8, 9], [0, 1]),
    ([4, 0, 2, 0], [6, 7, 8, 9], [0, 2, 4]),  # steps that revealed nothing are none
    ([0, 1, 2, 3], [6, 7, STOP, STOP], [0, 1]),  # nor those behind the last token that is no end token
    ([2, 0, 1, 3], [6, STOP, 7, STOP], [0, 1, 2]),
    ([0, 1, -1, -1], [6, STOP, STOP, STOP], [0]),  # filled after an early stop
    ([1, 0, -1, -1], [STOP, STOP, STOP, STOP], [0, 1]),  # end tokens alone, which the published code refuses
])  # fmt: skip
def test_the_steps_that_may_be_drawn(reveal, tokens, steps):
    rows = make_rows(reveal, tokens)
    for weighting in ("uniform", "entropy"):
        own, probability = build_estimator("sampled_steps", weighting=weighting).probabilities(rows)
        assert own.tolist() == [steps]
        torch.testing.assert_close(probability.sum(-1), torch.ones(1, dtype=torch.float64))


def test_steps_are_drawn_by_the_entropy_of_their_tokens():
    rows = make_rows([0, 2, 2, 5], [6, 7, 8, 9], entropy=[1.0, 0.25, 0.75, 2.0])
    own, probability = build_estimator("sampled_steps").probabilities(rows)
    assert own.tolist() == [[0, 2, 5]]
    torch.testing.assert_close(probability, torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64), atol=1e-7, rtol=0)
    steps, weight = build_estimator("sampled_steps").choose(rows, torch.tensor([[0.3, 0.9, 0.0, 0.9999999999]]))
    assert steps.tolist() == [[2, 5, 0, 5]]
    torch.testing.assert_close(weight, torch.tensor([[4 / 3, 2 / 3, 4 / 3, 2 / 3]], dtype=torch.float64))


def test_a_step_without_entropy_is_drawn_at_last_and_weighs_much():
    rows = make_rows([0, 1], [6, 7], entropy=[0.0, 1.0])
    _, probability = build_estimator("sampled_steps").probabilities(rows)
    assert probability[0, 0] == pytest.approx(LEAST_ENTROPY, rel=1e-6)


@pytest.mark.parametrize("weighting", ["uniform", "entropy"])
@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("draws", [1, 3])
def test_the_mean_of_the_draws_is_that_over_all_steps(weighting, stratified, draws):
    """Over 20,000 completions with noise of their own; each step has a value, and the exact mean is 3.25."""
    values = torch.tensor([1.0, 4.0, 2.0, 6.0], dtype=torch.float64)
    rows = make_rows([0, 1, 2, 3, 0], [6, 7, 8, 9, 6], copies=20_000, entropy=[0.2, 1.5, 0.7, 0.4, 0.3])
    options = {"weighting": weighting, "stratified": stratified, "draws": draws}
    passes = build_estimator("sampled_steps", **options).passes(rows, seed=1, step=2, update=0)
    assert len(passes) == draws
    found = []
    for one in passes:
        step = torch.where(one.scored, rows.reveal_step, -1).amax(-1)
        assert torch.equal(one.scored, rows.reveal_step == step.unsqueeze(-1))
        assert torch.equal(one.noisy == MASK, rows.response & (rows.reveal_step >= step.unsqueeze(-1)))
        found.append(one.loss_weight * values[step])
    mean = torch.stack(found).mean(0)
    error = float(mean.std() / len(mean) ** 0.5)
    assert abs(float(mean.mean()) - 3.25) < 4 * error
    if stratified and draws > 1:
        independent = build_estimator("sampled_steps", **{**options, "stratified": False})
        other = independent.passes(rows, seed=1, step=2, update=0)
        steps = [torch.where(one.scored, rows.reveal_step, -1).amax(-1) for one in other]
        spread = torch.stack([one.loss_weight * values[s] for one, s in zip(other, steps, strict=True)]).mean(0)
        assert mean.std() < spread.std()


def test_a_sampler_that_kept_no_record_is_named():
    rows = make_rows([0, 1], [6, 7])
    without = Rows(**{**rows.__dict__, "sampler_entropy": None})
    with pytest.raises(ValueError, match="reveal_step and sampler_entropy"):
        build_estimator("sampled_steps").passes(without, seed=0, step=0, update=0)
