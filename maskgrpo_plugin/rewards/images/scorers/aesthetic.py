"""The scorer `aesthetic`: LAION's aesthetic predictors, a head of linear layers on CLIP ViT-L/14 features."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.rewards.images.open_clip_model import (
    OpenClipModel,
    check_file,
    check_open_clip_options,
    load_state_dict,
)
from maskgrpo_plugin.rewards.images.registry import register_scorer
from maskgrpo_plugin.rewards.images.sample import ImageSample

ACTIVATIONS = ("none", "relu")


def check_aesthetic_options(options: Mapping[str, Any]) -> None:
    """Check the options without making a model.

    Raises:
        OptionError: the head is not there, an unknown activation, or what `check_open_clip_options` refuses.
    """
    check_file("head", options.get("head"))
    activation = options.get("activation", "none")
    if activation not in ACTIVATIONS:
        raise OptionError("activation", activation, f"allowed: {', '.join(ACTIVATIONS)}")
    check_open_clip_options(options)


def build_head(state: Mapping[str, Tensor], activation: str = "none") -> nn.Sequential:
    """The head that a checkpoint describes.

    Args:
        state: weights and biases of linear layers, whose names sort by the numbers in them: one layer
            (`weight`, `bias`), or the published `layers.0.weight`, `layers.2.weight`, …
        activation: between the layers: `none` (sac+logos+ava1-l14-linearMSE), or `relu` (ava+logos-l14-reluMSE).

    Returns:
        (B, D) to (B, 1).

    Raises:
        ValueError: the weights are no chain of linear layers that ends in one number.
    """
    prefixes = sorted(
        {name.rpartition(".")[0] for name in state},
        key=lambda prefix: [int(n) for n in prefix.split(".") if n.isdigit()],
    )
    layers: list[nn.Module] = []
    width = None
    for prefix in prefixes:
        weight, bias = (state.get(f"{prefix}.{part}" if prefix else part) for part in ("weight", "bias"))
        if weight is None or bias is None or weight.ndim != 2 or width not in (None, weight.shape[1]):
            raise ValueError(
                f"layer {prefix!r} of the aesthetic head is no linear layer that follows on {width} features"
            )
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        if layers and activation == "relu":
            layers.append(nn.ReLU())
        layers.append(layer)
        width = weight.shape[0]
    if width != 1:
        raise ValueError(f"the aesthetic head ends in {width} numbers, not in one")
    return nn.Sequential(*layers).float()


@register_scorer("aesthetic", requires=("open_clip",), extra="open_clip_torch", check=check_aesthetic_options)
class AestheticScorer:
    """How pleasing an image is, about 1 to 10; the prompt plays no part.

    Args:
        head: a file with the head's weights.
        activation: see `build_head`.
        model, pretrained, device, precision, quick_gelu: see `OpenClipModel`.

    Raises:
        ValueError: the head does not fit the model's features.
    """

    def __init__(
        self,
        head: str,
        activation: str = "none",
        model: str = "ViT-L-14",
        pretrained: str | None = "openai",
        device: str | None = None,
        precision: str = "fp32",
        quick_gelu: bool | None = None,
    ):
        self.head = build_head(load_state_dict(head), activation).eval().requires_grad_(False)
        self.clip = OpenClipModel(model, pretrained, device, precision, quick_gelu)
        self.head.to(self.clip.device)

    @torch.inference_mode()
    def score(self, samples: Sequence[ImageSample]) -> list[float]:
        """The predicted rating of each image."""
        return self.head(self.clip.image_features([sample.image for sample in samples])).squeeze(-1).tolist()
