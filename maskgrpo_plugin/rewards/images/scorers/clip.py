"""The scorer `clip`: cosine of image and prompt by an open_clip model (arXiv 2103.00020)."""

from collections.abc import Sequence

from maskgrpo_plugin.rewards.images.open_clip_model import OpenClipModel, check_open_clip_options
from maskgrpo_plugin.rewards.images.registry import register_scorer
from maskgrpo_plugin.rewards.images.sample import ImageSample


@register_scorer("clip", requires=("open_clip",), extra="open_clip_torch", check=check_open_clip_options)
class OpenClipScorer:
    """Cosine of image and prompt, in [-1, 1]; about 0.1 to 0.4 for natural pairs.

    Args:
        model, pretrained, device, precision, quick_gelu: see `OpenClipModel`.
    """

    def __init__(
        self,
        model: str = "ViT-L-14",
        pretrained: str | None = "openai",
        device: str | None = None,
        precision: str = "fp32",
        quick_gelu: bool | None = None,
    ):
        self.clip = OpenClipModel(model, pretrained, device, precision, quick_gelu)

    def score(self, samples: Sequence[ImageSample]) -> list[float]:
        """Cosine of each image with its prompt."""
        return self.clip.similarity(samples)
