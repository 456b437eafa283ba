"""SPG (arXiv 2510.09541): a lower and an upper bound of a completion's log-likelihood from the same random masks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.estimators.base import Estimator, Pass, Rows, register_estimator
from maskgrpo_plugin.diffusion.random import combine_seed, uniform_noise
from maskgrpo_plugin.diffusion.remasking import least_noise, mask_prompt, response_noise
from maskgrpo_plugin.errors import OptionError, check_choice, check_number

KINDS = ("block_random", "random", "block_all", "all")
_LEVEL_STREAM = 0x737067  # "spg": keeps counts and blocks apart from the masks of the same seed and step


@register_estimator("spg")
@dataclass(frozen=True)
class SPG(Estimator):
    """T canvases per update. With q the masked tokens of the answer on a canvas and n its maskable tokens, the weight
    of each is n/Σq, and ℓ̂ has two values per token, whose sums over the row are n times the bounds per token:

        lower: mean over t of n/Σq · π              (0 where not masked)
        upper: (n/m) · 1/β · log(mean over t of n/Σq · e^(β·π)),  0 where no canvas masks the token; m of them are.

    Kinds: `random` masks a uniform number of the n tokens; `block_random` draws a block, masks a uniform number of its
    tokens and all tokens after it, which count as well, as semi-autoregressive decoding meets it; `all` and `block_all`
    mask everything, or everything from the block on. A completion's blocks are drawn without repetition while there are
    enough; blocks that begin after the first end token are never drawn.

    Attributes:
        mu, canvas: see `Estimator`; published μ = 4 and `masked`.
        kind: see above.
        draws: T, 1 or more; published 2.
        block_length: tokens of a block, counted from the first response token; published 32.
        min_level, max_level: of k tokens at least max(1, ⌊min_level·k⌋) and at most ⌊max_level·k⌋ are masked (but 1).
        beta: β > 0 of the upper bound; published 1.5, Sudoku 1.0.
        prompt_mask_ratio: share of prompt tokens that are masked, in [0, 1); published 0.15.
        earlier_mask_ratio: share of the answer's tokens before the block that are masked, and count, in [0, 1). The
            published code masks them with the prompt's share.
    """

    separable: ClassVar[bool] = False
    uses_old: ClassVar[bool] = False
    uses_reference: ClassVar[bool] = False
    score: ClassVar[str] = "bounds"

    mu: int = 4
    kind: str = "block_random"
    draws: int = 2
    block_length: int = 32
    min_level: float = 0.0
    max_level: float = 1.0
    beta: float = 1.5
    prompt_mask_ratio: float = 0.15
    earlier_mask_ratio: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind", self.kind, KINDS)
        check_number("draws", self.draws, 1, whole=True)
        check_number("block_length", self.block_length, 1, whole=True)
        check_number("min_level", self.min_level, 0, 1)
        check_number("max_level", self.max_level, self.min_level, 1)
        check_number("beta", self.beta, 0)
        check_number("prompt_mask_ratio", self.prompt_mask_ratio, 0, 1)
        check_number("earlier_mask_ratio", self.earlier_mask_ratio, 0, 1)
        if self.beta == 0:
            raise OptionError("beta", self.beta, "allowed: numbers above 0")

    def passes(self, rows: Rows, *, seed: int, step: int, update: int) -> list[Pass]:
        """See `Estimator.passes`."""
        base = combine_seed(seed, step, update)
        clean = mask_prompt(
            self.clean(rows),
            rows.prompt,
            self.prompt_mask_ratio,
            seed=base,
            keys=rows.keys,
            mask_token_id=rows.mask_token_id,
        )
        return self.passes_of(rows, clean, [self._mask(rows, base, draw) for draw in range(self.draws)])

    def passes_of(self, rows: Rows, clean: Tensor, masks: Sequence[Tensor]) -> list[Pass]:
        """The passes of given masks of the answer, each (B, L) bool, on the canvas `clean` (B, L)."""
        maskable = self.maskable(rows)
        found = []
        for mask in masks:
            scored = mask & maskable
            share = maskable.sum(-1, keepdim=True).double() / scored.sum(-1, keepdim=True).clamp(min=1)
            found.append(Pass(clean.masked_fill(scored, rows.mask_token_id), scored, scored * share))
        return found

    def counted(self, rows: Rows, passes: Sequence[Pass]) -> Tensor:
        """The maskable tokens: rows weigh by their number."""
        return self.maskable(rows)

    def fold(self, passes: Sequence[Pass], log_probs: Sequence[Tensor]) -> Tensor:
        """Lower and upper bound of each token, (B, L, 2)."""
        values = torch.stack(list(log_probs), dim=-1)
        scored = torch.stack([p.scored for p in passes], dim=-1)
        weight = torch.stack([p.weight for p in passes], dim=-1).to(values.dtype)
        lower = torch.where(scored, weight * values, 0.0).mean(-1)
        seen = scored.any(-1)
        # an empty sum has the logarithm −∞ and no gradient: such tokens are given a term, and then left out
        exponent = self.beta * values + weight.clamp(min=torch.finfo(values.dtype).tiny).log()
        inside = scored | ~seen.unsqueeze(-1)
        exponent = torch.where(inside, torch.where(scored, exponent, 0.0), -torch.inf)
        bound = (exponent.logsumexp(-1) - math.log(len(passes))) / self.beta
        tokens = weight.sum(-2).amax(-1, keepdim=True)  # the weights of a pass add up to n
        upper = torch.where(seen, bound * tokens / seen.sum(-1, keepdim=True).clamp(min=1), 0.0)
        return torch.stack([lower, upper], dim=-1)

    def _mask(self, rows: Rows, seed: int, draw: int) -> Tensor:
        """(B, L) bool, the answer's tokens that a draw masks."""
        maskable = self.maskable(rows)
        after = torch.zeros_like(maskable)
        region, earlier = maskable, torch.zeros_like(maskable)
        if self.kind.startswith("block"):
            block = rows.response_blocks(self.block_length)
            drawn = self._drawn_block(rows, block, seed, draw)
            region, after, earlier = (maskable & chosen for chosen in (block == drawn, block > drawn, block < drawn))
        noise = response_noise(maskable, seed=combine_seed(seed, draw), keys=rows.keys)
        if self.kind.endswith("all"):
            inside = region
        else:
            size = region.sum(-1, keepdim=True).double()
            low, high = ((level * size).floor().clamp(min=1) for level in (self.min_level, self.max_level))
            u = uniform_noise(combine_seed(_LEVEL_STREAM, seed, draw), rows.keys, 1)
            count = low + (u * (high - low + 1)).floor()
            inside = least_noise(noise, region, count)
        return inside | after | (earlier & (noise < self.earlier_mask_ratio))

    def _drawn_block(self, rows: Rows, block: Tensor, seed: int, draw: int) -> Tensor:
        """(B, 1) the block of a draw: the blocks that hold tokens of the answer in a random order, over and over."""
        last = block.masked_fill(~(self.maskable(rows) & ~rows.tail), 0).amax(-1, keepdim=True)
        noise = uniform_noise(combine_seed(_LEVEL_STREAM, seed), rows.keys, int(block.max()) + 1 if len(block) else 1)
        order = noise.masked_fill(torch.arange(noise.shape[1], device=noise.device) > last, torch.inf).argsort(-1)
        return order.gather(1, draw % (last + 1))
