"""MATH: competition problems with an answer in LaTeX; MATH-500 is the validation part."""

from typing import Any

from maskgrpo_plugin.data.records import DataError, HubSource, as_object, text_field
from maskgrpo_plugin.data.rows import Row, verl_row
from maskgrpo_plugin.data.templates import TaskTemplates, Template, answer_form
from maskgrpo_plugin.rewards.text.answers import boxed_contents

HUB = {
    "train": HubSource("DigitalLearningGmbH/MATH-lighteval", "train"),
    "validation": HubSource("HuggingFaceH4/MATH-500", "test"),
}
TEMPLATES = TaskTemplates(
    names=("question",),
    project="{question}\n\nSolve this problem. Put the final result, in its simplest exact form, into \\boxed{}.\n\n"
    "Answer in this form:\n" + answer_form("your reasoning, step by step", "\\boxed{the result}"),
    published="You are good at mathematics. Work through the problem below step by step, and give its result in "
    "\\boxed{}.\nWrite your reply in this form:\n"
    + answer_form("the steps of your solution", "\\boxed{the result}")
    + "\n\n{question}",
)


def math_row(record: Any, split: str, index: int, template: Template = TEMPLATES.default) -> Row:
    """One row in verl's format from one record with a `problem`, and an `answer` or a `solution` that boxes it.

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
        content=template.fill(question=problem),
        ground_truth=answer,
        split=split,
        index=index,
        **template.extra_info(),
    )
