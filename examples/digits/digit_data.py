"""Handwritten digits as data: prompts such as "a handwritten seven", and questions about images of digits.

Images are given by their codes (B, N) and the digits they show (B,); rows hold the codes of one image, row by row.
"""

from typing import Any

import torch
from torch import Tensor

from maskgrpo_plugin.data.chats import question_and_answer
from maskgrpo_plugin.data.rows import Row, verl_row

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUESTION = "which digit is this"
WORDS = ("a", "handwritten", *DIGIT_NAMES, *QUESTION.split())
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


def question_rows(codes: Tensor, labels: Tensor, split: str) -> list[Row]:
    """Rows in verl's format, one an image: the question which digit it shows, judged by the task `short_answer`."""
    return [
        verl_row(
            data_source="digit_questions",
            task="short_answer",
            content=QUESTION,
            ground_truth=DIGIT_NAMES[digit],
            split=split,
            index=index,
            ability="image_question",
            modality="mmu",
            image_codes=image,
        )
        for index, (image, digit) in enumerate(zip(codes.tolist(), labels.tolist(), strict=True))
    ]


def caption_rows(
    codes: Tensor, labels: Tensor, *, rows: int | None = None, wrong: float = 0.0, seed: int = 0
) -> list[Row]:
    """Supervised rows of text to image.

    Args:
        codes, labels: of the images.
        rows: how many are drawn, images with return; None: each image once, in order.
        wrong: share of the captions that name another digit, any of them.
        seed: of what is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = _drawn(len(labels), rows, generator)
    other = (labels[chosen] + torch.randint(1, 10, chosen.shape, generator=generator)) % 10
    named = torch.where(torch.rand(chosen.shape, generator=generator) < wrong, other, labels[chosen])
    return [
        {"caption": digit_prompt(digit), **_image(image)}
        for image, digit in zip(codes[chosen].tolist(), named.tolist(), strict=True)
    ]


def conversation_rows(
    codes: Tensor, labels: Tensor, *, rows: int | None = None, wrong: float = 0.0, seed: int = 0
) -> list[Row]:
    """Supervised rows of understanding; see `caption_rows`, but that `wrong` is the share of the answers about odd
    digits that name the next digit, and those about even ones are right.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = _drawn(len(labels), rows, generator)
    shown = labels[chosen]
    is_wrong = (shown % 2 == 1) & (torch.rand(chosen.shape, generator=generator) < wrong)
    named = torch.where(is_wrong, (shown + 1) % 10, shown)
    return [
        {
            "messages": question_and_answer(QUESTION, DIGIT_NAMES[digit]),
            **_image(image),
        }
        for image, digit in zip(codes[chosen].tolist(), named.tolist(), strict=True)
    ]


def _drawn(images: int, rows: int | None, generator: torch.Generator) -> Tensor:
    return torch.arange(images) if rows is None else torch.randint(images, (rows,), generator=generator)


def _image(codes: list[int]) -> Row:
    """The columns of a square image."""
    side = round(len(codes) ** 0.5)
    return {"image_codes": codes, "height": side, "width": side}
