"""Models that judge images: a classifier and a CLIP, from transformers folders, fed with the decoder's pixels."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Preprocessing:
    """What transformers' image processors do, on tensors: resize (bicubic), crop the centre, normalise.

    Attributes:
        height, width: sides of the model's input in pixels.
        keep_ratio: whether the image is resized until it covers the input, then its centre is cropped; else both sides
            are resized to the input's.
        mean, std: one number per channel, for values in [0, 1].
    """

    height: int
    width: int
    keep_ratio: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Preprocessing":
        """Read `preprocessor_config.json`.

        Raises:
            FileNotFoundError: the folder has none.
            ValueError: it names no size.
        """
        settings = json.loads((Path(folder) / PREPROCESSOR).read_text())
        size: Any = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
        if isinstance(size, int):
            size = {"height": size, "width": size}
        if not size:
            raise ValueError(f"{folder}/{PREPROCESSOR} names no size")
        edge = size.get("shortest_edge")
        return cls(
            height=size.get("height", edge),
            width=size.get("width", edge),
            keep_ratio=bool(settings.get("do_center_crop")),
            mean=tuple(settings["image_mean"]),
            std=tuple(settings["image_std"]),
        )

    def save(self, folder: str | Path, processor: str) -> None:
        """Write `preprocessor_config.json` for transformers' image processor of that name."""
        size = {"height": self.height, "width": self.width}
        settings = {
            "image_processor_type": processor,
            "do_resize": True,
            "resample": 3,
            "size": {"shortest_edge": self.height} if self.keep_ratio else size,
            "do_center_crop": self.keep_ratio,
            "crop_size": size,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        (Path(folder) / PREPROCESSOR).write_text(json.dumps(settings, indent=2) + "\n")

    def __call__(self, pixels: Tensor) -> Tensor:
        """Inputs of the model.

        Args:
            pixels: (B, 3, H, W), values in [-1, 1]; what lies outside is clipped.

        Returns:
            (B, 3, height, width) float32.
        """
        x = (pixels.float().clamp(-1, 1) + 1) / 2
        target = (self.height, self.width)
        if self.keep_ratio:
            scale = max(self.height / x.shape[2], self.width / x.shape[3])
            target = (max(self.height, round(x.shape[2] * scale)), max(self.width, round(x.shape[3] * scale)))
        if tuple(x.shape[2:]) != target:
            x = F.interpolate(x, size=target, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = (x.shape[2] - self.height) // 2, (x.shape[3] - self.width) // 2
        x = x[:, :, top : top + self.height, left : left + self.width]
        mean = torch.tensor(self.mean, device=x.device)[None, :, None, None]
        return (x - mean) / torch.tensor(self.std, device=x.device)[None, :, None, None]


class ImageClassifier:
    """A transformers image classifier with its preprocessing.

    Args:
        folder: what `AutoModelForImageClassification` loads, with `preprocessor_config.json`.
        device: where it runs.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu"):
        from transformers import AutoModelForImageClassification

        self.preprocessing = Preprocessing.from_folder(folder)
        self.model = AutoModelForImageClassification.from_pretrained(folder).to(device).eval().requires_grad_(False)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in order."""
        return tuple(self.model.config.id2label[i] for i in range(self.model.config.num_labels))

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Probabilities of the classes; (B, 3, H, W) in [-1, 1] -> (B, classes) float32."""
        inputs = self.preprocessing(pixels.to(self.model.device))
        return self.model(pixel_values=inputs.to(self.model.dtype)).logits.float().softmax(-1)


class CLIPSimilarity:
    """A transformers CLIP with its tokenizer and preprocessing (arXiv 2103.00020).

    Args:
        folder: what `CLIPModel` and `AutoTokenizer` load, with `preprocessor_config.json`.
        device: where it runs.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu"):
        from transformers import AutoTokenizer, CLIPModel

        self.preprocessing = Preprocessing.from_folder(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = CLIPModel.from_pretrained(folder).to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def similarity(self, pixels: Tensor, texts: list[str]) -> Tensor:
        """Cosine of each image with its text.

        Args:
            pixels: (B, 3, H, W), values in [-1, 1].
            texts: B texts, cut to the model's length.

        Returns:
            (B,) float32 in [-1, 1].

        Raises:
            ValueError: the numbers of texts and images differ.
        """
        if len(texts) != pixels.shape[0]:
            raise ValueError(f"{len(texts)} texts for {pixels.shape[0]} images")
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        output = self.model(
            input_ids=tokens["input_ids"].to(self.model.device),
            attention_mask=tokens["attention_mask"].to(self.model.device),
            pixel_values=self.preprocessing(pixels.to(self.model.device)).to(self.model.dtype),
        )
        image = F.normalize(output.image_embeds.float(), dim=-1)
        return (image * F.normalize(output.text_embeds.float(), dim=-1)).sum(-1)
