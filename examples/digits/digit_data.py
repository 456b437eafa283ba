"""Handwritten digits as a text-to-image data set: prompts such as "a handwritten seven"."""

from typing import Any

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TASK = "digits"


def digit_prompt(digit: int) -> str:
    """What asks for a digit, 0 to 9."""
    return f"a handwritten {DIGIT_NAMES[digit]}"


def digit_rows(rows: int, split: str) -> list[dict[str, Any]]:
    """Rows in verl's format; the digits take turns, so that any ten rows in order hold each once.

    Args:
        rows: how many, at least 1.
        split: `train` or `validation`; it goes into `extra_info`.

    Raises:
        ValueError: `rows` is less than 1.
    """
    if rows < 1:
        raise ValueError(f"rows={rows}: allowed are 1 or more")
    return [
        {
            "data_source": TASK,
            "prompt": [{"role": "user", "content": digit_prompt(index % 10)}],
            "ability": "image",
            "reward_model": {"style": "model", "ground_truth": str(index % 10)},
            "extra_info": {"split": split, "index": index, "task": TASK, "modality": "t2i"},
        }
        for index in range(rows)
    ]
