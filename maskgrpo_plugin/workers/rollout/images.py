"""Images on the rollout server: their tokens to pixels, in batches."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskgrpo_plugin.models.families import ImageFamily
from maskgrpo_plugin.models.image_tokenizers import load_image_tokenizer
from maskgrpo_plugin.pixels import to_images


class ImageDecoder:
    """The image tokenizer of a rollout server.

    Args:
        path: folder of the image tokenizer; see `load_image_tokenizer`.
        family: the language model's family, which names where the image tokens lie.
        device: where to decode.

    Raises:
        ValueError: the tokenizer's codebook is not the checkpoint's.
    """

    def __init__(self, path: str, family: ImageFamily, device: torch.device):
        self.family = family
        self.model: Any = load_image_tokenizer(path, device)
        if self.model.config.codebook_size != family.image.codebook_size:
            raise ValueError(
                f"the image tokenizer at {path} has {self.model.config.codebook_size} codes; the checkpoint's config "
                f"has codebook_size={family.image.codebook_size}"
            )

    @torch.inference_mode()
    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> list[np.ndarray]:
        """Image tokens (B, h·w) as B arrays (H, W, 3) uint8."""
        pixels = self.model.decode_code(self.family.image.to_codes(tokens), grid)
        return list(to_images(pixels).cpu().numpy())
