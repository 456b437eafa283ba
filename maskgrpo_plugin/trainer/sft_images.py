"""Images of held-out captions, drawn in the middle of supervised training."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from verl.utils.device import get_device_name

from maskgrpo_plugin.data.sft_rows import Example
from maskgrpo_plugin.diffusion.samplers import build_for_run
from maskgrpo_plugin.errors import OptionError, first_line
from maskgrpo_plugin.models.families import ImageFamily, build_family
from maskgrpo_plugin.trainer.sft_data import Source
from maskgrpo_plugin.workers.rollout.images import ImageDecoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sketcher:
    """Draws the captions of examples as the model would at this moment.

    Attributes:
        family: the checkpoint's.
        decoder: turns image tokens into pixels.
        sampler: name of a sampler of images.
        options: of the sampler.
        temperature: of the sampling.
        seed: every validation starts from the same noise, so that sheets compare.
    """

    family: ImageFamily
    decoder: ImageDecoder
    sampler: str
    options: dict[str, Any]
    temperature: float
    seed: int

    @torch.no_grad()
    def draw(self, model: Any, examples: Sequence[Example], device: torch.device | str) -> list[np.ndarray]:
        """Images (H, W, 3) uint8 of examples whose answers are images of one size."""
        canvas, mask = _padded([_canvas(example, self.family.mask_token_id) for example in examples])
        uncond, uncond_mask = _padded([example.uncond_ids for example in examples])
        count = sum(examples[0].learned)
        sampler: Any = build_for_run(
            self.sampler,
            self.options,
            response_length=count,
            temperature=self.temperature,
            vocab_slice=self.family.image.vocab_slice,
        )
        output = sampler.generate(
            model,
            canvas.to(device),
            mask.to(device),
            mask_token_id=self.family.mask_token_id,
            generator=torch.Generator().manual_seed(self.seed),
            uncond_input_ids=uncond.to(device),
            uncond_attention_mask=uncond_mask.to(device),
        )
        written = (canvas == self.family.mask_token_id).to(device)
        tokens = output.sequences[written].view(len(examples), count)
        return self.decoder.decode(tokens, examples[0].grid or self.family.default_grid())


def make_sketcher(config: DictConfig, sources: Sequence[Source], model_config: Any) -> Sketcher | None:
    """The sketcher of a run; None where `images.image_tokenizer` names none or no validation row is an image.

    Args:
        config: the run's.
        sources: its data.
        model_config: verl's, with the checkpoint's config and tokenizer.

    Raises:
        OptionError: an image tokenizer that cannot be read or is not the checkpoint's, or a sampler that cannot work.
    """
    section = config.images
    if section.image_tokenizer is None or config.model.model_type != "masked_diffusion":
        return None
    family = build_family(model_config.hf_config, model_config.tokenizer)
    if not isinstance(family, ImageFamily) or not any(e.is_image for source in sources for e in source.validation):
        logger.warning(
            "images.image_tokenizer=%s: no validation row is an image; none are drawn", section.image_tokenizer
        )
        return None
    options: Any = OmegaConf.to_container(section.options, resolve=True)
    by_run = {"response_length": family.image.count, "temperature": section.temperature}
    try:
        build_for_run(section.sampler, options, vocab_slice=family.image.vocab_slice, **by_run)
    except OptionError as error:
        raise error.under("images" if error.key in ("temperature", "name") else "images.options") from None
    try:
        decoder = ImageDecoder(str(section.image_tokenizer), family, get_device_name())
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise OptionError("images.image_tokenizer", section.image_tokenizer, first_line(error)) from None
    return Sketcher(family, decoder, section.sampler, options, section.temperature, config.trainer.seed)


def _canvas(example: Example, mask_token_id: int) -> tuple[int, ...]:
    """The example with a mask token at each place that is learned."""
    answer = zip(example.answer_ids, example.learned, strict=True)
    return example.prompt_ids + tuple(mask_token_id if learned else token for token, learned in answer)


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows padded on the left (B, L), and 1 where there is a token."""
    width = max(map(len, rows))
    tokens = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return tokens, mask
