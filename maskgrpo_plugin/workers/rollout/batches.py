"""What a sampler is given of several requests: canvases behind padded prompts, noise, and prompts of guidance."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from maskgrpo_plugin.workers.rollout.requests import CanvasRequest, pad_left


@dataclass(frozen=True)
class SamplerBatch:
    """B requests, ready for `Sampler.generate`.

    Attributes:
        tokens: (B, P + R) prompts padded on the left, and the canvases after them.
        attention_mask: (B, P + R), 1 = token, 0 = padding; None where nothing is padded.
        generators: each row's noise.
        uncond: of images: the sampler's `uncond_input_ids` and `uncond_attention_mask`, (B, P).
    """

    tokens: Tensor
    attention_mask: Tensor | None
    generators: list[torch.Generator]
    uncond: dict[str, Any] = field(default_factory=dict)


def pad_prompts(
    prompts: Sequence[Sequence[int]], padding: int, device: torch.device, width: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Prompts padded on the left to the longest of them, at least to `width`; their mask where one is padded.

    Returns:
        Tokens (B, P), and their mask (B, P) with 1 = token, or None.
    """
    width = max(width, *(len(prompt) for prompt in prompts))
    tokens, mask = pad_left(prompts, width, padding)
    padded = bool((mask == 0).any())
    return tokens.to(device), mask.to(device) if padded else None


def noise(seeds: Sequence[int], device: torch.device) -> list[torch.Generator]:
    """A generator per request, by its seed."""
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def sampler_batch(
    prompts: Sequence[Sequence[int]],
    canvases: Sequence[CanvasRequest | None],
    seeds: Sequence[int],
    *,
    response_length: int,
    mask_token_id: int,
    padding: int,
    device: torch.device,
) -> SamplerBatch:
    """Lay requests of one kind out as a batch.

    Args:
        prompts: B prompts.
        canvases: what follows each; None: `response_length` masks.
        seeds: of each one's noise.
        response_length: R of texts without a canvas of their own.
        mask_token_id: id of the mask token.
        padding: token that fills the columns before a shorter prompt.
        device: where the sampler computes.
    """
    longest_uncond = max(len(canvas.uncond_ids) if canvas else 0 for canvas in canvases)
    tokens, mask = pad_prompts(prompts, padding, device, longest_uncond)
    masks = (mask_token_id,) * response_length
    canvas = torch.tensor([each.canvas_ids if each else masks for each in canvases], device=device)
    uncond: dict[str, Any] = {}
    if all(each is not None and each.is_image for each in canvases):
        ids, seen = pad_left([each.uncond_ids for each in canvases if each], tokens.shape[1], padding)
        uncond = {"uncond_input_ids": ids.to(device), "uncond_attention_mask": seen.to(device)}
    if mask is not None:
        mask = torch.cat([mask, torch.ones_like(canvas)], dim=1)
    return SamplerBatch(torch.cat([tokens, canvas], dim=1), mask, noise(seeds, device), uncond)
