"""Countdown: reach a target with given numbers, each used once; from files, the hub, or drawn at random."""

import json
import operator
import random
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from maskgrpo_plugin.data import splits
from maskgrpo_plugin.data.records import DataError, HubSource, as_object
from maskgrpo_plugin.data.rows import Row, verl_row
from maskgrpo_plugin.data.templates import TaskTemplates, Template, answer_form

HUB = {"train": HubSource("Jiayi-Pan/Countdown-Tasks-3to4", "train")}
NUMBERS = 3
LARGEST = 100
OPERATIONS = (operator.add, operator.sub, operator.mul, operator.truediv)
VALIDATION_SHARE = 5  # one in so many problems is held out
TEMPLATES = TaskTemplates(
    names=("numbers", "target"),
    project="Write an arithmetic expression over the numbers {numbers} whose value is {target}. Use every number "
    "exactly once, and only the operations +, -, * and / with parentheses where they are needed.\n\n"
    "Answer in this form:\n" + answer_form("your reasoning, step by step", "\\boxed{the expression}"),
    published="Combine the given numbers by +, -, * and / into an expression whose value is the given target. Every "
    "number has to occur exactly once, and no other number may occur. Reason step by step first; then give the "
    "expression alone, without the target and without an equals sign, in \\boxed{}. With the numbers [3, 5, 8] and the "
    "target 16, for example, \\boxed{(5-3)*8} would be right.\nWrite your reply in this form:\n"
    + answer_form("the steps of your search", "\\boxed{the expression}")
    + "\n\nNumbers: {numbers}\nTarget: {target}",
)


def countdown_row(record: Any, split: str, index: int, template: Template = TEMPLATES.default) -> Row:
    """One row in verl's format from `{"input": "30,100,93", "output": "23"}` or `{"nums": [30, 100, 93], "target":
    23}`.

    Raises:
        DataError: the record has neither form, or its numbers are not positive whole numbers.
    """
    numbers, target = _problem(as_object(record))
    return verl_row(
        data_source="countdown",
        task="countdown",
        content=template.fill(numbers=numbers, target=target),
        ground_truth=json.dumps([numbers, target]),
        split=split,
        index=index,
        **template.extra_info(),
    )


def hub_row(record: Any, split: str, index: int, template: Template = TEMPLATES.default) -> Row | None:
    """`countdown_row` for the hub's data set, of which only problems with NUMBERS numbers are taken."""
    if len(_problem(as_object(record))[0]) != NUMBERS:
        return None
    return countdown_row(record, split, index, template)


def problem_key(row: Row) -> tuple[tuple[int, ...], int]:
    """What makes two rows the same problem: the numbers, in whatever order, and the target."""
    numbers, target = json.loads(row["reward_model"]["ground_truth"])
    return tuple(sorted(numbers)), target


def draw_records(*, held_out: bool, seed: int) -> Iterator[dict[str, Any]]:
    """Draw problems without end, no two alike: NUMBERS numbers of 1 to LARGEST and a target of 1 to LARGEST, the
    value of a random expression over them. Training and held-out problems never meet, whatever the seed.

    Args:
        held_out: problems for validation, else for training.
        seed: of this call alone; no global generator is touched.
    """
    rng = random.Random(f"{seed}/{held_out}")
    seen: set[tuple[tuple[int, ...], int]] = set()
    while True:
        numbers = [rng.randint(1, LARGEST) for _ in range(NUMBERS)]
        target = _random_value(numbers, rng)
        if target is None or target.denominator != 1 or not 1 <= target <= LARGEST:
            continue
        key = tuple(sorted(numbers)), int(target)
        if key not in seen and is_held_out(*key) == held_out:
            seen.add(key)
            yield {"nums": numbers, "target": key[1]}


def is_held_out(numbers: tuple[int, ...], target: int) -> bool:
    """Whether a problem, its numbers sorted, belongs to the validation part; no seed plays a role."""
    return splits.is_held_out(f"{numbers}={target}", VALIDATION_SHARE)


def _random_value(numbers: list[int], rng: random.Random) -> Fraction | None:
    """Value of a random expression that uses each number once; None where it divides by zero."""
    values = [Fraction(number) for number in numbers]
    while len(values) > 1:
        a, b = (values.pop(rng.randrange(len(values))) for _ in range(2))
        operation = rng.choice(OPERATIONS)
        if operation is operator.truediv and b == 0:
            return None
        values.append(operation(a, b))
    return values[0]


def _problem(record: dict[str, Any]) -> tuple[list[int], int]:
    """Numbers and target of a record, whichever form it has."""
    try:
        if "input" in record:
            numbers, target = [int(text) for text in str(record["input"]).split(",")], int(record["output"])
        else:
            numbers, target = [int(number) for number in record["nums"]], int(record["target"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"neither input and output nor nums and target with whole numbers ({error!r})") from error
    if not numbers or min(numbers) < 1:
        raise DataError(f"the numbers must be positive, got {numbers}")
    return numbers, target
