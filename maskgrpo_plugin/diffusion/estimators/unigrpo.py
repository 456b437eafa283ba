"""UniGRPO (MMaDA, arXiv 2505.15809, Algorithm 1): random masks at levels that cover the whole range."""

from dataclasses import dataclass

from torch import Tensor

from maskgrpo_plugin.diffusion.estimators.base import Estimator, Pass, Rows, make_pass, register_estimator
from maskgrpo_plugin.diffusion.random import combine_seed, uniform_noise
from maskgrpo_plugin.diffusion.remasking import remask
from maskgrpo_plugin.errors import OptionError, check_choice, check_number

LEVELS = ("stratified", "independent")
_LEVEL_STREAM = 0x6C6576656C  # "level": keeps these draws apart from the masks of the same seed and step


@register_estimator("unigrpo")
@dataclass(frozen=True)
class UniGRPO(Estimator):
    """One pass per update: each response token masked with the completion's own probability t_n.

    With the levels 0 to 1 and μ = 5, a completion that starts at 0.1 has the levels 0.1, 0.3, 0.5, 0.7, 0.9, as in the
    paper's example. A random start of its own for each completion needs `mask_sharing: sample`, which
    `method=unigrpo` sets; completions that share a mask share the levels.

    Attributes:
        mu, canvas: see `Estimator`.
        low, high: range of the levels, 0 ≤ low < high ≤ 1.
        levels: `stratified`: t_n = low + (high − low)·(u + n)/μ for n = 0 … μ − 1 and one u ~ U(0, 1) per completion;
            `independent`: t_n ~ U(low, high), each on its own (dLLM-RL's `random_masking`, with 0.1 and 0.9).
    """

    mu: int = 5
    low: float = 0.0
    high: float = 1.0
    levels: str = "stratified"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("levels", self.levels, LEVELS)
        check_number("low", self.low, 0, 1)
        check_number("high", self.high, 0, 1)
        if not self.low < self.high:
            raise OptionError("low", self.low, f"allowed: below high={self.high}")

    def passes(self, rows: Rows, *, seed: int, step: int, update: int) -> list[Pass]:
        """See `Estimator.passes`."""
        noisy, masked = remask(
            self.clean(rows),
            self.maskable(rows),
            self.row_levels(rows.keys, seed=seed, step=step, update=update),
            "random",
            seed=combine_seed(seed, step, update),
            keys=rows.keys,
            mask_token_id=rows.mask_token_id,
        )
        return [make_pass(noisy, masked)]

    def row_levels(self, keys: Tensor, *, seed: int, step: int, update: int) -> Tensor:
        """Each row's mask level at an update, (B,) float64, from its key (B,)."""
        draws = uniform_noise(combine_seed(_LEVEL_STREAM, seed, step), keys, self.mu)
        if self.levels == "independent":
            share = draws[:, update]
        else:
            share = (draws[:, 0] + update) / self.mu
        return self.low + (self.high - self.low) * share
