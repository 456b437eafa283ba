"""An open_clip model with its preprocessing and tokenizer, as the image scorers use it."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.rewards.images.sample import ImageSample

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "amp")
SCHEMAS = ("local-dir:", "hf-hub:")


def check_open_clip_options(options: Mapping[str, Any]) -> None:
    """Check the options that every open_clip scorer has, without making a model.

    Raises:
        OptionError: a model that open_clip does not know, a tag it has no weights for, a file that is not there,
            or an unknown precision.
    """
    import open_clip

    precision = options.get("precision", "fp32")
    if precision not in PRECISIONS:
        raise OptionError("precision", precision, f"allowed: {', '.join(PRECISIONS)}")
    model, pretrained = str(options.get("model", "ViT-L-14")), options.get("pretrained", "openai")
    if model.startswith(SCHEMAS[0]) and not Path(model.removeprefix(SCHEMAS[0])).is_dir():
        raise OptionError("model", model, "the folder does not exist")
    if model.startswith(SCHEMAS):
        return
    if model not in open_clip.list_models():
        raise OptionError("model", model, "open_clip.list_models() has the names; or local-dir:FOLDER")
    check_file("pretrained", pretrained, tuple(open_clip.list_pretrained_tags_by_model(model)))


def check_file(option: str, value: Any, names: tuple[str, ...] = ()) -> None:
    """Raise OptionError unless `value` is one of `names` or an existing file."""
    if value not in names and (not value or not Path(str(value)).expanduser().is_file()):
        also = f", or one of {', '.join(names)}" if names else ""
        raise OptionError(option, value, f"give a file that exists{also}")


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Weights of a safetensors or torch file, from under `state_dict` where there is one; runs no code of the file."""
    path = Path(path).expanduser()
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    return {name.removeprefix("module."): value for name, value in state.items()}


def choose_device(device: str | None) -> torch.device:
    """The device of that name; None takes verl's platform where the process sees its device, else the CPU."""
    if device is None:
        from verl.utils.device import get_device_name

        device = get_device_name() if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Mixed precision (float16 on CUDA, bfloat16 elsewhere) for `amp`, nothing for `fp32`."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.float16 if device.type == "cuda" else torch.bfloat16)


class OpenClipModel:
    """Features of images and texts by an open_clip model.

    Args:
        model: a name of open_clip's, or `local-dir:FOLDER`, `hf-hub:NAME` (both hold their own weights).
        pretrained: a tag of open_clip's, or a file with weights.
        device: see `choose_device`.
        precision: `fp32` or `amp`.
        quick_gelu: the activation; None takes what the tag was trained with. Say true for OpenAI's weights in a file.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None,
        device: str | None = None,
        precision: str = "fp32",
        quick_gelu: bool | None = None,
    ):
        import open_clip

        own_weights = model.startswith(SCHEMAS)
        if quick_gelu is None:
            tag = {} if own_weights else open_clip.get_pretrained_cfg(model, pretrained or "")
            quick_gelu = bool(tag.get("quick_gelu", False))
        self.device, self.precision = choose_device(device), precision
        self.model, self.preprocess = open_clip.create_model_from_pretrained(
            model, pretrained=None if own_weights else pretrained, device=self.device, force_quick_gelu=quick_gelu
        )
        self.model.eval().requires_grad_(False)
        self.tokenizer = open_clip.get_tokenizer(model)

    @torch.inference_mode()
    def image_features(self, images: Sequence[np.ndarray]) -> Tensor:
        """Unit vectors (B, D) float32 of B images (H, W, 3) uint8, each of any size."""
        from PIL import Image

        pixels = torch.stack([self.preprocess(Image.fromarray(image)) for image in images]).to(self.device)
        with autocast(self.device, self.precision):
            return F.normalize(self.model.encode_image(pixels).float(), dim=-1)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D) float32 of B texts; what passes the model's length is cut."""
        tokens = self.tokenizer(list(texts)).to(self.device)
        with autocast(self.device, self.precision):
            return F.normalize(self.model.encode_text(tokens).float(), dim=-1)

    def similarity(self, samples: Sequence[ImageSample]) -> list[float]:
        """Cosine of each image with its prompt, in [-1, 1]."""
        images = self.image_features([sample.image for sample in samples])
        texts = self.text_features([sample.prompt for sample in samples])
        return (images * texts).sum(-1).tolist()
