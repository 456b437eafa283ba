"""The emerge sampler of image tokens (arXiv 2510.02880, Algorithm 4)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.samplers.noise import Generators, uniform_rows
from maskgrpo_plugin.diffusion.samplers.registry import register_sampler
from maskgrpo_plugin.diffusion.samplers.scheduled import ScheduledSampler


@register_sampler("emerge")
@dataclass(frozen=True, kw_only=True)
class EmergeSampler(ScheduledSampler):
    """Each masked position stays masked with probability k_s/k_t, else takes a token drawn from the model; the last
    step reveals what is left. Options: `ScheduledSampler`'s; `temperature` is that of the softmax.
    """

    @property
    def draws(self) -> bool:
        """Positions are drawn whatever the temperature."""
        return True

    def reveal(
        self, logits: Tensor, chosen: Tensor, positions: Tensor, total: Tensor, step: int, generator: Generators
    ) -> Tensor:
        stay = self.share(step + 1) / self.share(step)
        revealed = torch.zeros_like(positions)
        revealed[positions] = uniform_rows(positions.sum(-1), generator, logits.device) >= stay
        return revealed
