"""Contact sheets of validation: a PNG in the run's folder, and an image in those trackers that show images."""

import logging
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from maskgrpo_plugin.files import written_whole
from maskgrpo_plugin.pixels import contact_sheet, to_pixels

logger = logging.getLogger(__name__)

TAG = "val-images/contact_sheet"
TABLE = "val/generations"  # where verl has that of texts


def distinct_words(prompts: Sequence[str]) -> list[str]:
    """Prompts without the words that all of them begin with, so that short captions tell them apart."""
    words = [prompt.split() for prompt in prompts]
    shared = list(takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False)))
    return [" ".join(w[len(shared) :]) or " ".join(w) for w in words]


def log_contact_sheet(
    images: Sequence[tuple[int, str, float, np.ndarray]], tracking: Any, folder: Path, step: int, table_rows: int = 0
) -> Path | None:
    """Draw images with their prompts and scores.

    Args:
        images: (row, prompt, score, image (H, W, 3) uint8), all images of one size.
        tracking: verl's Tracking; TensorBoard and Weights & Biases get the sheet, others cannot show images.
        folder: where `step_<n>.png` is written; made where it is missing.
        step: the training step.
        table_rows: images that Weights & Biases also gets one by one, with prompt and score, as a table.

    Returns:
        The file, or None where there are no images.
    """
    if not images:
        return None
    pixels = to_pixels([image for *_, image in images])
    prompts = distinct_words([prompt for _, prompt, _, _ in images])
    sheet = contact_sheet(pixels, [f"{image[2]:.2f} {prompt}" for image, prompt in zip(images, prompts, strict=True)])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step}.png"
    with written_whole(path) as file:
        sheet.save(file, format="PNG")
    backends = getattr(tracking, "logger", {})
    try:
        if "tensorboard" in backends:
            backends["tensorboard"].writer.add_image(TAG, np.asarray(sheet), step, dataformats="HWC")
        if "wandb" in backends:
            import wandb

            data: dict[str, Any] = {TAG: wandb.Image(sheet)}
            if table_rows:
                rows = [[step, prompt, wandb.Image(pixel), score] for _, prompt, score, pixel in images[:table_rows]]
                data[TABLE] = wandb.Table(columns=["step", "input", "output", "score"], data=rows)
            backends["wandb"].log(data=data, step=step)
    except Exception:
        logger.exception("the contact sheet of step %d could not be logged; it is at %s", step, path)
    return path
