"""What an image scorer sees and gives: one sample, the scorer's interface, and its kinds of errors."""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class ImageSample:
    """An image with what it was asked to show.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        prompt: the text the image was made from.
        ground_truth: the data row's, whatever the scorer takes (a text to be read, a digit); None for none.
        metadata: what else the data row holds of the sample, plain data.
    """

    image: np.ndarray
    prompt: str
    ground_truth: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        image = self.image
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(f"an image must be a uint8 array (H, W, 3), got {found}")


class ImageScorer(Protocol):
    """Scores images; a factory makes it once in its process, and it is called for batch after batch.

    A scorer may have an attribute `concurrency`, the number of batches it takes at once (default 1; more needs an
    async `score`).
    """

    def score(self, samples: Sequence[ImageSample]) -> Sequence[float] | Awaitable[Sequence[float]]:
        """One number per sample, in order; plain (called in a thread) or async.

        NaN says that this sample cannot be scored. An exception makes each sample of the batch be tried alone, so that
        one bad sample costs only itself; ScorerUnavailable does not, it holds for all of them.
        """


class ScorerUnavailable(RuntimeError):
    """The scorer as such cannot answer now, whatever the sample: a server is down or answers nonsense."""
