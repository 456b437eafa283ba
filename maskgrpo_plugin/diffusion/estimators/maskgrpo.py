"""MaskGRPO (arXiv 2510.02880): one truncated mask level per inner update, later tokens masked more in texts."""

from dataclasses import dataclass
from functools import cached_property

from maskgrpo_plugin.diffusion.estimators.base import Estimator, Pass, Rows, make_pass, register_estimator
from maskgrpo_plugin.diffusion.levels import mask_levels
from maskgrpo_plugin.diffusion.random import combine_seed
from maskgrpo_plugin.diffusion.remasking import REMASKING_MODES, remask
from maskgrpo_plugin.errors import OptionError, check_choice

TIME_WEIGHTINGS = ("none", "inverse_t")


@register_estimator("maskgrpo")
@dataclass(frozen=True)
class MaskGRPO(Estimator):
    """One pass per update: ô = Rev(o, t_j, S_j) with t_j = min(γ + (1 − γ)·j/μ, cap); ℓ̂ = log p(o_n | ô) where masked.

    The published code masks the tail like the rest and has it in the loss: `canvas="full"`.

    Attributes:
        mu, canvas: see `Estimator`; the paper has μ = 12 for text and 6 for images.
        gamma: lowest mask level γ, in the open interval (0, 1); the paper has 0.6 for text and 0.8 for images.
        remasking: Rev, `ar_like` (text, Algorithm 1) or `random` (images, Algorithm 2).
        time_weighting: `none` (published code), or `inverse_t` (Eq. 2): an update's loss times 1/t_j.
        level_cap: highest mask level, in (0, 1].
    """

    mu: int = 12
    gamma: float = 0.6
    remasking: str = "ar_like"
    time_weighting: str = "none"
    level_cap: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("remasking", self.remasking, REMASKING_MODES)
        check_choice("time_weighting", self.time_weighting, TIME_WEIGHTINGS)
        if not 0 < self.gamma < 1:
            raise OptionError("gamma", self.gamma, "allowed: the open interval (0, 1)")
        if not 0 < self.level_cap <= 1:
            raise OptionError("level_cap", self.level_cap, "allowed: (0, 1]")

    @cached_property
    def levels(self) -> list[float]:
        """Mask levels t_1 … t_μ."""
        return mask_levels(self.mu, self.gamma, self.level_cap)

    def passes(self, rows: Rows, *, seed: int, step: int, update: int) -> list[Pass]:
        """See `Estimator.passes`."""
        noisy, masked = remask(
            self.clean(rows),
            self.maskable(rows),
            self.levels[update],
            self.remasking,
            seed=combine_seed(seed, step, update),
            keys=rows.keys,
            mask_token_id=rows.mask_token_id,
        )
        return [make_pass(noisy, masked)]

    def loss_weight(self, update: int) -> float:
        """1/t_j under `inverse_t`, else 1."""
        return 1 / self.levels[update] if self.time_weighting == "inverse_t" else 1.0

    def metrics(self, update: int) -> dict[str, float]:
        """The level t_j as `mask_ratio`."""
        return {"mask_ratio": self.levels[update]}
