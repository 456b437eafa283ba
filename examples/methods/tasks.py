"""Make the start of a further task: a small model with random weights, and rows for its supervised training and RL.

  python examples/methods/tasks.py countdown --output-dir runs/countdown
  python -m maskgrpo_plugin.sft --config-name sft_quickstart quickstart_dir=runs/countdown data.max_length=33 \
    trainer.target_val_loss=null trainer.total_training_steps=4000

  python examples/methods/tasks.py sudoku --output-dir runs/sudoku
  python -m maskgrpo_plugin.sft --config-name sft_quickstart quickstart_dir=runs/sudoku data.max_length=38 \
    trainer.target_val_loss=null trainer.total_training_steps=80

Countdown has three numbers, of whose problems those are taken that + and - alone solve; Sudoku has 4x4 cells of which
eight are empty. Their prompts are the problem alone, their answers the expression or the grid. A Sudoku's accuracy is
the share of its empty cells that are right.
"""

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

from maskgrpo_plugin.arguments import CommandParser
from maskgrpo_plugin.data import countdown, sudoku
from maskgrpo_plugin.data.chats import question_and_answer
from maskgrpo_plugin.data.rows import Row, write_parquet
from maskgrpo_plugin.data.templates import Template
from maskgrpo_plugin.quickstart import Recipe, make_diffusion_model, make_tokenizer

TRAIN_ROWS = 48_000  # for the supervised training; of 8,000 Countdown problems the small model learns each by heart
CHARACTERS = "0123456789+-=[], "
COUNTDOWN = Template("{numbers}={target}", "template")
SUDOKU = Template("{puzzle}=", "template")


@dataclass(frozen=True)
class Problem:
    """A row for RL in verl's format, and an answer that its scorer takes."""

    row: Row
    answer: str


def signed_sum(numbers: list[int], target: int) -> str | None:
    """An expression over all numbers, in their order but the subtracted ones last; None where + and - do not do.

    Example: of [4, 10, 7] and 13 it is `10+7-4`.
    """
    for signs in product((1, -1), repeat=len(numbers)):
        plus = [n for n, sign in zip(numbers, signs, strict=True) if sign > 0]
        minus = [n for n, sign in zip(numbers, signs, strict=True) if sign < 0]
        if plus and sum(plus) - sum(minus) == target:
            return "+".join(map(str, plus)) + "".join(f"-{n}" for n in minus)
    return None


def countdown_problems(split: str, seed: int) -> Iterator[Problem]:
    """Problems without end that + and - solve; those of training and validation never meet."""
    index = 0
    for record in countdown.draw_records(held_out=split == "validation", seed=seed):
        if (answer := signed_sum(record["nums"], record["target"])) is not None:
            yield Problem(countdown.countdown_row(record, split, index, COUNTDOWN), answer)
            index += 1


def sudoku_problems(split: str, seed: int) -> Iterator[Problem]:
    """Puzzles without end; those of training and validation never meet."""
    for index, record in enumerate(sudoku.draw_records(held_out=split == "validation", seed=seed)):
        yield Problem(sudoku.sudoku_row(record, split, index, SUDOKU), record["solution"])


PROBLEMS = {"countdown": countdown_problems, "sudoku": sudoku_problems}


def make(task: str, output_dir: Path, recipe: Recipe) -> None:
    """Write the folder `initial`, which AutoModelForCausalLM loads, and train.parquet and validation.parquet in `data`
    and `sft`, whose problems differ; sizes are the recipe's.
    """
    tokenizer = make_tokenizer(CHARACTERS)
    make_diffusion_model(tokenizer, recipe).save_pretrained(output_dir / "initial")
    tokenizer.save_pretrained(output_dir / "initial")
    sizes = {
        "train": (recipe.rl_rows, recipe.train_rows),
        "validation": (recipe.rl_validation_rows, recipe.validation_rows),
    }
    for split, (for_rl, for_sft) in sizes.items():
        problems = PROBLEMS[task](split, recipe.seed)
        rows = [problem.row for problem in islice(problems, for_rl)]
        write_parquet(rows, output_dir / "data" / f"{split}.parquet")
        chats = [
            {"messages": question_and_answer(problem.row["prompt"][-1]["content"], problem.answer)}
            for problem in islice(problems, for_sft)
        ]
        write_parquet(chats, output_dir / "sft" / f"{split}.parquet")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0."""
    parser = CommandParser(
        prog="python examples/methods/tasks.py", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=PROBLEMS)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    options = parser.parse_args(arguments)
    make(options.task, options.output_dir, Recipe(seed=options.seed, train_rows=TRAIN_ROWS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
