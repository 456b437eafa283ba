"""A checkpoint as the generation command uses it: what it is first, its weights when all else has been checked."""

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging
from verl.utils.device import get_device_name

from maskgrpo_plugin.config import ImageSettings
from maskgrpo_plugin.errors import OptionError, first_line
from maskgrpo_plugin.evaluation.servers import is_diffusion, load_model_config
from maskgrpo_plugin.models.families import Family, ImageFamily, build_family
from maskgrpo_plugin.models.registry import block_length_of
from maskgrpo_plugin.models.special_tokens import stop_token_ids
from maskgrpo_plugin.workers.rollout.images import ImageDecoder

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Checkpoint:
    """A checkpoint in a transformers folder or on the hub.

    Args:
        path: of the folder, or the name on the hub.
        device: torch's name of one; None: verl's, a GPU where there is one.
        dtype: torch's name of one; None: float32 on the CPU, else bfloat16.
        image: where the image tokenizer is, and the size of its images.

    Attributes:
        config, tokenizer: transformers'.
        family: the checkpoint's; None where it is autoregressive.
        stop_token_ids: tokens that end a text.
        padding: token that fills the columns before a shorter prompt.
        device: where it computes.

    Raises:
        OptionError: there is no such checkpoint or device, or one that cannot be used.
    """

    def __init__(self, path: str, *, device: str | None, dtype: str | None, image: ImageSettings):
        self.path, self.image = path, image
        self.device = _device(device)
        self.dtype = getattr(torch, dtype or ("float32" if self.device.type == "cpu" else "bfloat16"))
        model = self._tried(lambda: load_model_config(path))
        self.config, self.tokenizer = model.hf_config, model.tokenizer
        self.family: Family | None = None
        if self._tried(lambda: is_diffusion(path)):
            self.family = self._tried(lambda: build_family(self.config, self.tokenizer))
        self.stop_token_ids = self.family.stop_token_ids if self.family else stop_token_ids(self.tokenizer)
        self.padding: int = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    @property
    def longest(self) -> int | None:
        """Most tokens of prompt and response together; None where the config does not say."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def block_length(self) -> int | None:
        """Of a checkpoint that attends block by block."""
        return block_length_of(self.config)

    @property
    def mask_token_id(self) -> int:
        """Id of the mask token of a diffusion checkpoint."""
        assert self.family is not None
        return self.family.mask_token_id

    @cached_property
    def model(self) -> Any:
        """The model with its weights, loaded when first asked for.

        Raises:
            OptionError: weights that cannot be loaded.
        """
        transformers_logging.disable_progress_bar()
        loaded = self._tried(
            lambda: AutoModelForCausalLM.from_pretrained(self.path, config=self.config, dtype=self.dtype)
        )
        return loaded.to(self.device).eval().requires_grad_(False)

    @cached_property
    def image_tokenizer(self) -> ImageDecoder:
        """The image tokenizer, loaded when first asked for.

        Raises:
            OptionError: none is named, it cannot be loaded, or is not the checkpoint's.
        """
        path = self.image.tokenizer_path
        if not path:
            raise OptionError("--image-tokenizer", path, "name the folder of the checkpoint's image tokenizer")
        try:
            return ImageDecoder(path, self.image_family("--image-tokenizer", path), self.device)
        except OptionError:
            raise
        except Exception as error:  # as with checkpoints
            raise OptionError("--image-tokenizer", path, first_line(error)) from error

    def image_family(self, flag: str, value: str) -> ImageFamily:
        """The family, of a checkpoint that has image tokens.

        Raises:
            OptionError: it has none; names the flag, and its value, that asks for them.
        """
        if not isinstance(self.family, ImageFamily):
            kind = f"of the family {self.family.name!r}" if self.family else "autoregressive"
            raise OptionError(flag, value, f"the model is {kind} and has no image tokens")
        return self.family

    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens of the images that are made.

        Raises:
            OptionError: sides that the image tokenizer does not divide.
        """
        size = [self.image.height, self.image.width] if self.image.height else None
        try:
            return self.image.grid(self.image_family("--to", "image"), self.image_tokenizer.model.config)
        except ValueError as error:
            if isinstance(error, OptionError):
                raise
            raise OptionError("--image-size", size, str(error)) from error

    def _tried(self, load: Callable[[], T]) -> T:
        try:
            return load()
        except OptionError:
            raise
        except Exception as error:  # the libraries that read checkpoints raise errors of many kinds
            raise OptionError("--model", self.path, first_line(error)) from error


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or get_device_name())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError("--device", name, first_line(error)) from error
    return device
