"""Scorers and samples for the tests of image rewards; the factories are named by file path in configs."""

import asyncio
import os
import time
from pathlib import Path

import numpy as np

from maskgrpo_plugin.rewards.images import ImageSample

FILE = str(Path(__file__).resolve())


def sample(level: int = 0, prompt: str = "a grey square", ground_truth=None, size=(8, 8), **metadata) -> ImageSample:
    """A grey image."""
    return ImageSample(np.full((*size, 3), level, dtype=np.uint8), prompt, ground_truth, metadata)


def text_image(text: str, size: int = 36) -> np.ndarray:
    """Black text on white, (128, 320, 3)."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (320, 128), "white")
    ImageDraw.Draw(image).text((20, 40), text, fill="black", font=ImageFont.load_default(size=size))
    return np.asarray(image)


class BrightnessScorer:
    """Mean level over 255. The level 13 raises, 14 is NaN, 15 takes `slow_s` seconds, 16 kills the process."""

    def __init__(self, log: str = "", slow_s: float = 5.0):
        self.log, self.slow_s = log, slow_s

    def score(self, samples):
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()} {len(samples)}\n")
        return [self._one(int(s.image[0, 0, 0]), s) for s in samples]

    def _one(self, level, s):
        if level == 13:
            raise ValueError("unlucky")
        if level == 15:
            time.sleep(self.slow_s)
        if level == 16:
            os._exit(1)
        return float("nan") if level == 14 else float(s.image.mean() / 255)


class AsyncScorer:
    """Length of the prompt, two batches at once."""

    concurrency = 2

    async def score(self, samples):
        await asyncio.sleep(0.01)
        return [float(len(s.prompt)) for s in samples]


def broken(**_):
    """A factory that cannot load its scorer."""
    raise RuntimeError("no weights here")
