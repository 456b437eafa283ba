"""Scorers from local folders in transformers' layout: `digits`, a classifier, and `clip_folder`, a CLIP."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.pixels import to_pixels
from maskgrpo_plugin.rewards.images.open_clip_model import choose_device
from maskgrpo_plugin.rewards.images.registry import register_scorer
from maskgrpo_plugin.rewards.images.sample import ImageSample


def check_folder(options: Mapping[str, Any]) -> None:
    """Raise OptionError unless the folder holds a model and its preprocessing."""
    folder = Path(str(options.get("folder"))).expanduser()
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise OptionError("folder", options.get("folder"), f"give a folder that holds {name}")


@register_scorer("digits", check=check_folder)
class DigitScorer:
    """Probability, in [0, 1], that a classifier gives to the digit that the sample's ground truth names.

    Args:
        folder: the classifier, with `preprocessor_config.json`; its labels are the digits' names.
        device: see `choose_device`.
    """

    def __init__(self, folder: str, device: str | None = None):
        from maskgrpo_plugin.models.image_scorers import ImageClassifier

        self.classifier = ImageClassifier(Path(folder).expanduser(), choose_device(device))
        self.columns = {str(label): n for n, label in enumerate(self.classifier.labels)}

    def score(self, samples: Sequence[ImageSample]) -> list[float]:
        """The probability of each sample's digit.

        Raises:
            ValueError: a ground truth that is none of the classifier's labels.
        """
        columns = [self._column(sample.ground_truth) for sample in samples]
        probabilities = self.classifier.probabilities(to_pixels([sample.image for sample in samples]))
        return probabilities[torch.arange(len(samples)), columns].tolist()

    def _column(self, truth: Any) -> int:
        if str(truth) not in self.columns:
            raise ValueError(f"ground_truth {truth!r} is no label; there are {', '.join(self.columns)}")
        return self.columns[str(truth)]


@register_scorer("clip_folder", check=check_folder)
class ClipFolderScorer:
    """Cosine of image and prompt, in [-1, 1], by a CLIP in transformers' layout.

    Args:
        folder: model, tokenizer and `preprocessor_config.json`.
        device: see `choose_device`.
    """

    def __init__(self, folder: str, device: str | None = None):
        from maskgrpo_plugin.models.image_scorers import CLIPSimilarity

        self.clip = CLIPSimilarity(Path(folder).expanduser(), choose_device(device))

    def score(self, samples: Sequence[ImageSample]) -> list[float]:
        """The cosine of each image with its prompt."""
        pixels = to_pixels([sample.image for sample in samples])
        return self.clip.similarity(pixels, [sample.prompt for sample in samples]).tolist()
