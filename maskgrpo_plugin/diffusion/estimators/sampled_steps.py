"""AGRPO: a few steps of the sampler's own trajectory, each in the state that the sampler saw, against its record."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.estimators.base import Estimator, Pass, Rows, register_estimator
from maskgrpo_plugin.diffusion.estimators.trajectory import merge_steps
from maskgrpo_plugin.diffusion.random import combine_seed, uniform_noise
from maskgrpo_plugin.errors import OptionError, check_choice, check_number

WEIGHTINGS = ("entropy", "uniform")
LEAST_ENTROPY = 1e-8  # added to that of every step, so that none has the probability 0


@register_estimator("sampled_steps")
@dataclass(frozen=True)
class SampledSteps(Estimator):
    """One pass per drawn step: tokens of earlier steps are visible, all others masked, those of the step are scored.

    AGRPO (arXiv 2510.04019). A completion's steps are those up to the last that revealed a token other than an end
    token, T in number; the mean over them of a step's loss is estimated by `draws` of them, each a row of the loss of
    its own. A step that was drawn with the probability P weighs 1/(T·P), so that the expectation is the mean over all
    steps, whatever `weighting`.

    The ratio is of what was sampled: the canvas is the one that the sampler saw, the tail as its steps left it, and the
    policy that sampled is its record (`from_record`). No pass of the old policy is made.

    The reveal steps [0, 1, 1, 0] and the draw of step 1: the first and the last token visible, the second and third
    masked and scored.

    Attributes:
        mu: see `Estimator`.
        canvas: `full`, the sampler's own canvas; another one would hide from the policy what the sampler saw.
        draws: steps per completion and update, 1 or more; published 24.
        weighting: how a step is drawn: `entropy`, in proportion to the entropies of the distributions that its tokens
            were drawn from (published); `uniform`.
        stratified: whether the draws of a completion lie in equal parts of [0, 1), one in each (published); else they
            are independent.
    """

    requires: ClassVar[tuple[str, ...]] = ("reveal_step", "sampler_log_prob", "sampler_entropy", "sampler_allowed")
    uses_old: ClassVar[bool] = False
    from_record: ClassVar[bool] = True

    canvas: str = "full"
    draws: int = 24
    weighting: str = "entropy"
    stratified: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.canvas != "full":
            allowed = "use full: the ratio to the sampler's record is on the canvas that the sampler saw"
            raise OptionError("canvas", self.canvas, allowed)
        check_number("draws", self.draws, 1, whole=True)
        check_choice("weighting", self.weighting, WEIGHTINGS)
        if not isinstance(self.stratified, bool):
            raise OptionError("stratified", self.stratified, "allowed: true, false")

    @property
    def estimates(self) -> int:
        """`draws`."""
        return self.draws

    def passes(self, rows: Rows, *, seed: int, step: int, update: int) -> list[Pass]:
        """See `Estimator.passes`."""
        number = self.uniforms(rows, combine_seed(seed, step, update))
        steps, weight = self.choose(rows, number)
        return step_passes(rows, steps, weight)

    def uniforms(self, rows: Rows, seed: int) -> Tensor:
        """(B, draws) float64 in [0, 1), one in each of `draws` equal parts where they are stratified."""
        noise = uniform_noise(seed, rows.keys, self.draws)
        if not self.stratified:
            return noise
        return (torch.arange(self.draws, device=noise.device) + noise) / self.draws

    def choose(self, rows: Rows, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Steps by inversion of their distribution function.

        Args:
            rows: the completions.
            uniform: (B, K) in [0, 1).

        Returns:
            (B, K) int64, reveal steps, and (B, K) float64, 1/(T·P) of each. The steps 0, 2 and 5 with the entropies
            1, 1 and 2 and the uniforms 0.3 and 0.9: the steps 2 and 5, with the weights 4/3 and 2/3.
        """
        own, probability = self.probabilities(rows)
        count = (own >= 0).sum(-1, keepdim=True).clamp(min=1)
        rank = torch.searchsorted(probability.cumsum(-1), uniform.double(), right=True)
        rank = torch.minimum(rank, count - 1)
        return own.gather(1, rank), 1 / (count * probability.gather(1, rank).clamp(min=torch.finfo(torch.float64).tiny))

    def probabilities(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The distinct steps of each completion (B, S) int64 that may be drawn, in their order and then −1, and the
        probability of each (B, S) float64, 0 behind them.

        They are those up to the last with a token other than an end token; all where there is no such token.
        """
        reveal, entropy = rows.reveal_step, rows.sampler_entropy
        if reveal is None or entropy is None:
            raise ValueError("the estimator sampled_steps needs reveal_step and sampler_entropy of the rollout")
        revealed = rows.response & (reveal >= 0)
        stops = torch.isin(rows.tokens, torch.tensor(list(rows.stop_token_ids), device=rows.tokens.device).long())
        speaking = revealed & ~stops
        speaking = torch.where(speaking.any(-1, keepdim=True), speaking, revealed)
        last = reveal.masked_fill(~speaking, -1).amax(-1, keepdim=True)
        drawable = revealed & (reveal <= last)
        rank = merge_steps(reveal, drawable, 1)
        count = max(int(rank.max()) + 1, 1) if rank.numel() else 1
        place = rank.clamp(min=0)
        steps = torch.full((len(rank), count), -1, device=rank.device)
        steps = steps.scatter_reduce(1, place, reveal.long().masked_fill(~drawable, -1), "amax")
        mass = torch.zeros(steps.shape, dtype=torch.float64, device=rank.device)
        mass = mass.scatter_add(1, place, entropy.double().masked_fill(~drawable, 0)) + LEAST_ENTROPY
        if self.weighting == "uniform":
            mass = torch.ones_like(mass)
        mass = mass.masked_fill(steps < 0, 0)
        total = mass.cumsum(-1)[:, -1:]  # in order: the same whatever other rows there are
        return steps, mass / total.clamp(min=LEAST_ENTROPY)


def step_passes(rows: Rows, steps: Tensor, weight: Tensor) -> list[Pass]:
    """A pass for each drawn step.

    Args:
        rows: the completions.
        steps: (B, K) int64, reveal steps; −1 for none.
        weight: (B, K) float64, the factor of each step's loss.
    """
    reveal = rows.reveal_step
    assert reveal is not None
    found = []
    for own, factor in zip(steps.unbind(1), weight.unbind(1), strict=True):
        at = own.unsqueeze(1)
        hidden = rows.response & ((reveal < 0) | (reveal >= at))
        scored = rows.response & (reveal == at) & (reveal >= 0)
        found.append(Pass(rows.tokens.masked_fill(hidden, rows.mask_token_id), scored, scored.double(), factor))
    return found
