"""GSM8K: grade-school word problems with a whole number as answer."""

from typing import Any

from maskgrpo_plugin.data.records import DataError, HubSource, text_field
from maskgrpo_plugin.data.rows import Row, verl_row
from maskgrpo_plugin.data.templates import TaskTemplates, Template, answer_form
from maskgrpo_plugin.rewards.text.scorers.gsm8k import parse_ground_truth

HUB = {
    "train": HubSource("openai/gsm8k", "train", "main"),
    "validation": HubSource("openai/gsm8k", "test", "main"),
}
TEMPLATES = TaskTemplates(
    names=("question",),
    project="{question}\n\nSolve the problem step by step. When you are done, write the final result as one integer "
    "between <answer> and </answer>, for example <answer>42</answer>.",
    published="You are good at mathematics. Work through the question below step by step, and give its result in "
    "\\boxed{}.\nWrite your reply in this form:\n"
    + answer_form("the steps of your solution", "\\boxed{the result, a number}")
    + "\n\n{question}",
)


def gsm8k_row(record: Any, split: str, index: int, template: Template = TEMPLATES.default) -> Row:
    """One row in verl's format from one GSM8K record with `question` and `answer`.

    Raises:
        DataError: a field is missing or the answer has no number after `####`.
    """
    question, answer = text_field(record, "question"), text_field(record, "answer")
    if "####" not in answer:
        raise DataError("the answer has no '####'")
    try:
        number = parse_ground_truth(answer)
    except ValueError as error:
        raise DataError("what follows '####' in the answer is not one number") from error
    return verl_row(
        data_source=HUB[split].name,
        task="gsm8k",
        content=template.fill(question=question),
        ground_truth=f"{number:f}",
        split=split,
        index=index,
        **template.extra_info(),
    )
