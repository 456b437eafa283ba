"""The scorer `hpsv2`: Human Preference Score v2 and v2.1 (arXiv 2306.09341), a CLIP ViT-H/14 tuned on preferences.

The `hpsv2` package is a copy of open_clip with this checkpoint. It pins protobuf and pytest to versions that verl
cannot live with, and its wheel 1.2.0 lacks the tokenizer's vocabulary, so that importing its model fails as published.
The checkpoint has the parameter names of open_clip's ViT-H-14 and loads there; what differs is the preprocessing,
written out below: the longer side is resized and the rest padded, where open_clip crops.
"""

import importlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.rewards.images.open_clip_model import (
    PRECISIONS,
    autocast,
    check_file,
    choose_device,
    load_state_dict,
)
from maskgrpo_plugin.rewards.images.registry import register_scorer
from maskgrpo_plugin.rewards.images.sample import ImageSample

logger = logging.getLogger(__name__)

CHECKPOINTS = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}
HUB_NAME = "xswu/HPSv2"
BACKENDS = ("auto", "hpsv2", "open_clip")
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def check_hpsv2_options(options: Mapping[str, Any]) -> None:
    """Check the options without making a model.

    Raises:
        OptionError: an unknown version, backend or precision, or a checkpoint that is not there.
    """
    for option, default, allowed in (
        ("version", "v2.1", tuple(CHECKPOINTS)),
        ("backend", "auto", BACKENDS),
        ("precision", "fp32", PRECISIONS),
    ):
        value = options.get(option, default)
        if value not in allowed:
            raise OptionError(option, value, f"allowed: {', '.join(allowed)}")
    if options.get("checkpoint") is not None:
        check_file("checkpoint", options["checkpoint"])
    if options.get("backend") == "hpsv2" and _hpsv2_open_clip() is None:
        raise OptionError("backend", "hpsv2", "the package hpsv2 cannot be imported here; use open_clip")


def preprocess(image: np.ndarray, size: int) -> Tensor:
    """What the published score does with an image: longer side to `size`, the rest black, CLIP's normalisation.

    Args:
        image: (H, W, 3) uint8.
        size: the model's side, in pixels.

    Returns:
        (3, size, size) float32.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
    height, width = pixels.shape[1:]
    scale = size / max(height, width)
    target = (round(height * scale), round(width * scale))
    if scale != 1:
        pixels = F.interpolate(pixels[None], target, mode="bicubic", antialias=True, align_corners=False)[0]
    rows, columns = size - target[0], size - target[1]
    pixels = F.pad(pixels, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


class HPSv2Scorer:
    """Cosine of image and prompt under a preference model, about 0.2 to 0.35.

    Args:
        model: has encode_image (B, 3, S, S) and encode_text (B, T), as open_clip's CLIP.
        tokenizer: texts to (B, T) token ids.
        device: where the model is.
        precision: `fp32`, or `amp` as published on CUDA.
    """

    def __init__(self, model: Any, tokenizer: Any, device: torch.device, precision: str = "fp32"):
        self.model, self.tokenizer, self.device, self.precision = model, tokenizer, device, precision
        side = model.visual.image_size
        self.size = int(side[0] if isinstance(side, tuple | list) else side)

    @torch.inference_mode()
    def score(self, samples: Sequence[ImageSample]) -> list[float]:
        """The preference score of each sample."""
        pixels = torch.stack([preprocess(sample.image, self.size) for sample in samples]).to(self.device)
        tokens = self.tokenizer([sample.prompt for sample in samples]).to(self.device)
        with autocast(self.device, self.precision):
            images = F.normalize(self.model.encode_image(pixels), dim=-1)
            texts = F.normalize(self.model.encode_text(tokens), dim=-1)
        return (images.float() * texts.float()).sum(-1).tolist()


@register_scorer("hpsv2", requires=("open_clip",), extra="hpsv2", check=check_hpsv2_options)
def make_hpsv2(
    version: str = "v2.1",
    checkpoint: str | None = None,
    backend: str = "auto",
    device: str | None = None,
    precision: str = "fp32",
    model: str = "ViT-H-14",
) -> HPSv2Scorer:
    """Make the scorer.

    Args:
        version: `v2.1` or `v2.0`; which published checkpoint to get from the hub.
        checkpoint: a local file in its place.
        backend: `hpsv2` runs the package's own model, `open_clip` open_clip's; `auto` takes the first that works.
        device: see `choose_device`.
        precision: `fp32` or `amp`.
        model: the architecture's name.

    Raises:
        RuntimeError: the checkpoint does not fit the model.
    """
    where = choose_device(device)
    package = _clip_package(backend)
    if checkpoint is None:
        from huggingface_hub import hf_hub_download

        checkpoint = hf_hub_download(HUB_NAME, CHECKPOINTS[version])
    network = package.create_model(model, pretrained=None, device="cpu")
    network.load_state_dict(load_state_dict(checkpoint))
    logger.info("hpsv2 %s runs on %s", checkpoint, package.__name__)
    return HPSv2Scorer(network.to(where).eval().requires_grad_(False), package.get_tokenizer(model), where, precision)


def _clip_package(backend: str) -> Any:
    """The module that makes the model.

    Raises:
        ImportError: it is not there, or its import fails.
    """
    package = _hpsv2_open_clip() if backend in ("auto", "hpsv2") else None
    if package is None and backend == "hpsv2":
        raise ImportError("the package hpsv2 cannot be imported; use backend=open_clip")
    return package or importlib.import_module("open_clip")


def _hpsv2_open_clip() -> Any:
    """The copy of open_clip within the hpsv2 package, None where it is not there or its import fails."""
    try:
        from hpsv2.src import open_clip
    except ModuleNotFoundError as error:
        if error.name != "hpsv2":
            logger.warning("the package hpsv2 is there but lacks %s; its checkpoint goes into open_clip", error.name)
        return None
    except Exception as error:
        logger.warning("the package hpsv2 cannot be imported (%s); its checkpoint goes into open_clip", error)
        return None
    return open_clip
