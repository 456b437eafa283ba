"""Images of held-out captions, drawn in the middle of supervised training."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from verl.utils.device import get_device_name

from maskgrpo_plugin.data.sft_rows import Example
from maskgrpo_plugin.diffusion.random import combine_seed
from maskgrpo_plugin.diffusion.samplers import build_for_run
from maskgrpo_plugin.errors import OptionError, first_line
from maskgrpo_plugin.models.families import ImageFamily, build_family
from maskgrpo_plugin.trainer.sft_data import Source
from maskgrpo_plugin.workers.rollout.batches import sampler_batch
from maskgrpo_plugin.workers.rollout.images import ImageDecoder
from maskgrpo_plugin.workers.rollout.requests import CanvasRequest

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
        places = [n for n, learned in enumerate(examples[0].learned) if learned]
        batch = sampler_batch(
            [example.prompt_ids for example in examples],
            [self._canvas(example) for example in examples],
            [combine_seed(self.seed, number) for number in range(len(examples))],
            response_length=len(places),
            mask_token_id=self.family.mask_token_id,
            padding=0,
            device=torch.device(device),
        )
        sampler: Any = build_for_run(
            self.sampler,
            self.options,
            response_length=len(places),
            temperature=self.temperature,
            vocab_slice=self.family.image.vocab_slice,
        )
        output = sampler.generate(
            model,
            batch.tokens,
            batch.attention_mask,
            mask_token_id=self.family.mask_token_id,
            generator=batch.generators,
            **batch.uncond,
        )
        tokens = output.sequences[:, -len(examples[0].answer_ids) :][:, places]
        return self.decoder.decode(tokens, examples[0].grid or self.family.default_grid())

    def _canvas(self, example: Example) -> CanvasRequest:
        """The answer with a mask token at each place that is learned."""
        answer = zip(example.answer_ids, example.learned, strict=True)
        ids = tuple(self.family.mask_token_id if learned else token for token, learned in answer)
        return CanvasRequest(ids, example.uncond_ids, is_image=True)


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
