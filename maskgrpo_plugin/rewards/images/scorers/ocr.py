"""The scorer `ocr`: does the image show the text that the prompt asks for? Read by RapidOCR (PP-OCRv4 in ONNX)."""

import re
from collections.abc import Sequence

import numpy as np

from maskgrpo_plugin.rewards.images.registry import register_scorer
from maskgrpo_plugin.rewards.images.sample import ImageSample

QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»')


def quoted_text(prompt: str) -> str:
    """What stands in double quotes in a prompt, several parts joined by spaces; empty where nothing does."""
    return " ".join(next(part for part in match.groups() if part) for match in QUOTED.finditer(prompt)).strip()


def edit_distance(a: str, b: str) -> int:
    """Least number of insertions, deletions and replacements of characters that make `a` from `b`."""
    previous = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        current = [i]
        for j, right in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (left != right)))
        previous = current
    return previous[-1]


def text_similarity(found: str, wanted: str) -> float:
    """1 − edit distance over the longer text's length, in [0, 1]; case and white space do not count."""
    found, wanted = ("".join(text.split()).casefold() for text in (found, wanted))
    longest = max(len(found), len(wanted))
    return 1.0 if longest == 0 else 1 - edit_distance(found, wanted) / longest


@register_scorer("ocr", requires=("rapidocr_onnxruntime",), extra="ocr")
class OcrScorer:
    """How much of the asked text the image shows, in [0, 1].

    The text is the sample's ground truth where that is a text, else what the prompt has in quotes.

    Args:
        threads: CPU threads of the recognition.
        min_confidence: parts that are read with less are left out, in [0, 1].
    """

    def __init__(self, threads: int = 1, min_confidence: float = 0.5):
        from rapidocr_onnxruntime import RapidOCR

        self.engine = RapidOCR(
            intra_op_num_threads=threads, inter_op_num_threads=threads, text_score=min_confidence, use_cls=False
        )

    def read(self, image: np.ndarray) -> str:
        """The text in an image (H, W, 3) uint8 RGB, its parts from top to bottom joined by spaces."""
        parts, _ = self.engine(np.ascontiguousarray(image[..., ::-1]))
        return " ".join(part[1] for part in parts or ())

    def score(self, samples: Sequence[ImageSample]) -> list[float]:
        """The similarity of what each image shows to what it should.

        Raises:
            ValueError: a sample names no text.
        """
        return [text_similarity(self.read(sample.image), self.wanted(sample)) for sample in samples]

    @staticmethod
    def wanted(sample: ImageSample) -> str:
        """The text that the sample should show."""
        text = sample.ground_truth if isinstance(sample.ground_truth, str) else ""
        text = text.strip() or quoted_text(sample.prompt)
        if not text:
            raise ValueError(f"no text to be read: neither a ground truth nor quotes in the prompt {sample.prompt!r}")
        return text
