"""MATH: competition problems with an answer in LaTeX; MATH-500 is the validation part."""

from typing import Any

from maskgrpo_plugin.data.records import DataError, HubSource, as_object, text_field
from maskgrpo_plugin.data.rows import REASONING_FORMAT, Row, verl_row
from maskgrpo_plugin.rewards.text.answers import boxed_contents

HUB = {
    "train": HubSource("DigitalLearningGmbH/MATH-lighteval", "train"),
    "validation": HubSource("HuggingFaceH4/MATH-500", "test"),
}
INSTRUCTION = "Solve this problem. Put the final result, in its simplest exact form, into \\boxed{}.\n\n" + (
    REASONING_FORMAT.format(answer="\\boxed{the result}")
)


def math_row(record: Any, split: str, index: int) -> Row:
    """One row in verl's format from one record with `problem` and an `answer` or a `solution` whose box holds it.

    Raises:
        DataError: a field is missing or the solution has no box with an answer.
    """
    problem = text_field(record, "problem", "question")
    if str(as_object(record).get("answer") or "").strip():
        answer = str(record["answer"]).strip()
    else:
        boxes = boxed_contents(text_field(record, "answer", "solution"))
        answer = boxes[-1].strip() if boxes else ""
    if not answer:
        raise DataError("the solution has no \\boxed{} with an answer")
    return verl_row(
        data_source=HUB[split].name,
        task="math",
        content=f"{problem}\n\n{INSTRUCTION}",
        ground_truth=answer,
        split=split,
        index=index,
    )
