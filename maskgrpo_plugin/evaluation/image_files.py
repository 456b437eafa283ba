"""Images of an evaluation on disk, laid out as the scorers of GenEval and DPG-Bench read them.

GenEval's `evaluate_images.py IMAGEDIR` reads `<five digits>/metadata.jsonl` and `<five digits>/samples/<n>.png`.
DPG-Bench's `compute_dpg_bench.py --image-root-path DIR --resolution R --pic-num 4` reads `<item_id>.png`, four images
of side R in a square: the first two above, the others below.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.files import written_whole

if TYPE_CHECKING:  # imports verl, and the command's options need the layouts' names alone
    from maskgrpo_plugin.evaluation.problems import Problem

LAYOUTS = ("prompts", "geneval", "dpg_bench")
DPG_SAMPLES = 4


def metadata_of(problem: "Problem") -> dict[str, Any]:
    """The prompt and what its file held besides."""
    held = problem.extra_info.get("metadata") or {}
    return {**(json.loads(held) if isinstance(held, str) else held), "prompt": problem.text}


def check_layout(layout: str, problems: "Iterable[Problem]", samples: int) -> None:
    """Check that the data holds what a layout needs.

    Raises:
        OptionError: a key is missing in the prompts' metadata, or the number of samples does not fit.
    """
    needed = {"geneval": ("tag", "include"), "dpg_bench": ("item_id",)}.get(layout, ())
    for problem in problems:
        missing = [key for key in needed if key not in metadata_of(problem)]
        if missing:
            raise OptionError(
                "--layout", layout, f"the prompt {problem.id} has no {', '.join(missing)} in its metadata"
            )
    if layout == "dpg_bench" and samples != DPG_SAMPLES:
        raise OptionError("--samples", samples, f"the layout dpg_bench puts {DPG_SAMPLES} images in a square")


def image_path(problem: "Problem", sample: int) -> Path:
    """Where an image lies within the evaluation's folder."""
    return _folder(problem) / "samples" / f"{sample:05d}.png"


def write_image(folder: Path, problem: "Problem", sample: int, image: np.ndarray) -> str:
    """Write an image (H, W, 3) uint8 and its prompt's metadata, whole or not at all.

    Returns:
        its path within `folder`.
    """
    from PIL import Image

    place = image_path(problem, sample)
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / _folder(problem) / "metadata.jsonl") as file:
        file.write_text(json.dumps(metadata_of(problem)) + "\n", encoding="utf-8")
    with written_whole(folder / place) as file:
        Image.fromarray(image).save(file, format="PNG")
    return str(place)


def write_dpg_squares(folder: Path, problems: "Iterable[Problem]") -> Path:
    """Put the four images of each prompt into one, `dpg_bench/<item_id>.png`; returns their folder.

    Raises:
        FileNotFoundError: an image is missing.
    """
    from PIL import Image

    target = folder / "dpg_bench"
    target.mkdir(parents=True, exist_ok=True)
    for problem in problems:
        images = [Image.open(folder / image_path(problem, sample)) for sample in range(DPG_SAMPLES)]
        width, height = images[0].size
        square = Image.new("RGB", (2 * width, 2 * height))
        for number, image in enumerate(images):
            square.paste(image, (number % 2 * width, number // 2 * height))
        square.save(target / f"{metadata_of(problem)['item_id']}.png")
    return target


def _folder(problem: "Problem") -> Path:
    return Path("images") / problem.data_source.replace("/", "_") / f"{problem.row:05d}"
