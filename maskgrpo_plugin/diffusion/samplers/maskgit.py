"""MaskGIT (arXiv 2202.04200), the sampler of image tokens that MMaDA and Lumina-DiMOO publish."""

from dataclasses import dataclass

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.samplers.base import top_k_per_row
from maskgrpo_plugin.diffusion.samplers.noise import Generators, gumbel, uniform_rows
from maskgrpo_plugin.diffusion.samplers.registry import register_sampler
from maskgrpo_plugin.diffusion.samplers.scheduled import ScheduledSampler, draw_tokens


@register_sampler("maskgit")
@dataclass(frozen=True, kw_only=True)
class MaskGITSampler(ScheduledSampler):
    """Reveal the most certain positions, so that ⌊N·k((s+1)/T)⌋ stay masked and each step reveals at least one.

    Tokens are drawn from the softmax as it is; their log-probability plus Gumbel noise of scale
    temperature·(1 − (s+1)/T) ranks them. Temperature 0: the most probable tokens and no noise. Options:
    `ScheduledSampler`'s.
    """

    def draw(self, logits: Tensor, counts: Tensor, generator: Generators) -> Tensor:
        return draw_tokens(logits, 1.0 if self.temperature > 0 else 0.0, counts, generator)

    def reveal(
        self, logits: Tensor, chosen: Tensor, positions: Tensor, total: Tensor, step: int, generator: Generators
    ) -> Tensor:
        counts = positions.sum(-1)
        confidence = logits.log_softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1).double()
        scale = self.temperature * (1 - (step + 1) / self.steps)
        if scale > 0:
            confidence = confidence + scale * gumbel(uniform_rows(counts, generator, logits.device))
        scores = torch.full(positions.shape, float("-inf"), dtype=torch.float64, device=positions.device)
        scores[positions] = confidence
        # 1e-9: a product such as 10 · (1 − 0.9) is a whole number but for rounding
        keep = (total.double() * self.share(step + 1) + 1e-9).floor().long()
        return top_k_per_row(scores, (counts - keep).clamp(min=1)) & positions
