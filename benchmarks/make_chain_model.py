"""Make what the worked-sums model is trained from: a small LLaDA with random weights, and problems.

  bash benchmarks/chain.sh

makes them, trains the model by `python -m maskgrpo_plugin.sft` in four stages, and evaluates it. `approximate.py` and
the comparison of examples/methods (its tasks `worked_2` and `worked`) take the model.

A problem has two to five steps, one sentence each. The response works them out line by line in one of two phrasings,
and gives the result after `####`:

  Ann has 17 apples. On Monday she buys 5. On Friday she sells 3. How many apples?
  Monday: 17+5=22
  On Friday 22-3=19
  #### 19

The problems of training are not among the validation rows.
"""

import argparse
import random
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from maskgrpo_plugin.data.chats import question_and_answer
from maskgrpo_plugin.data.rows import Row, verl_row, write_parquet
from maskgrpo_plugin.quickstart import Recipe, make_diffusion_model, make_tokenizer

STEPS = range(2, 6)
TOTALS = range(10, 100)
OPERANDS = range(1, 10)
NAMES = {"Ann": "she", "Eva": "she", "Mia": "she", "Ben": "he", "Sam": "he", "Tom": "he"}
THINGS = ("apples", "books", "cards", "coins", "shells", "stamps")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
VERBS = {"+": ("buys", "finds", "gets"), "-": ("eats", "loses", "sells")}
PHRASINGS = ("{day}: {sum}", "On {day} {sum}")
HELD_OUT_SHARE = 5  # one problem in so many is for validation
PIECES = r" ?[A-Za-z]+|####|[\s\S]"

# the training begins with short chains: problems of so many steps, each stage's
STAGES = (range(1, 2), range(1, 3), STEPS, STEPS)


@dataclass(frozen=True)
class Problem:
    """A word problem, its worked chain with the result after `####`, and the result."""

    question: str
    chain: str
    answer: int


def draw_problem(rng: random.Random, steps: int) -> Problem:
    """Draw a problem of 1 to 7 steps; every number on the way has two digits."""
    name = rng.choice(list(NAMES))
    pronoun, thing = NAMES[name], rng.choice(THINGS)
    total = rng.choice(TOTALS)
    sentences, lines = [f"{name} has {total} {thing}."], []
    for day in sorted(rng.sample(DAYS, steps), key=DAYS.index):
        sign, operand, result = _draw_step(rng, total)
        sentences.append(f"On {day} {pronoun} {rng.choice(VERBS[sign])} {operand}.")
        sum_text = f"{total}{sign}{operand}={result}"
        lines.append(rng.choice(PHRASINGS).format(day=day, sum=sum_text))
        total = result
    question = " ".join([*sentences, f"How many {thing}?"])
    return Problem(question, "\n".join([*lines, f"#### {total}"]), total)


def draw_problems(rng: random.Random, steps: range, *, held_out: bool) -> Iterator[Problem]:
    """Draw problems without end, of the validation part or of the rest; which one depends on the question alone."""
    while True:
        problem = draw_problem(rng, rng.choice(steps))
        if (zlib.crc32(problem.question.encode()) % HELD_OUT_SHARE == 0) == held_out:
            yield problem


def make_chain_tokenizer() -> Any:
    """A tokenizer whose tokens are words with the space before them, single digits, and signs."""
    words = [*NAMES, *NAMES.values(), *THINGS, *DAYS, *VERBS["+"], *VERBS["-"], *"How On has many".split()]
    spaced = dict.fromkeys(form for word in words for form in (word, f" {word}"))
    return make_tokenizer([*"0123456789+-=.:? \n", "####", *spaced], PIECES)


def chats(count: int, steps: range, *, held_out: bool, seed: int) -> list[Row]:
    """Conversations of one problem each, for supervised training."""
    problems = draw_problems(random.Random(f"chats/{held_out}/{seed}"), steps, held_out=held_out)
    return [{"messages": question_and_answer(each.question, each.chain)} for each in islice(problems, count)]


def reward_rows(split: str, count: int, steps: range = STEPS, seed: int = 0) -> list[dict[str, Any]]:
    """Rows in verl's format, scored as GSM8K's; those of `validation` are of held-out problems."""
    problems = draw_problems(random.Random(f"{split}/{seed}"), steps, held_out=split == "validation")
    return [
        verl_row(
            data_source="chain",
            task="gsm8k",
            content=problem.question,
            ground_truth=str(problem.answer),
            split=split,
            index=index,
        )
        for index, problem in zip(range(count), problems, strict=False)
    ]


def make(output_dir: Path, *, seed: int, train_rows: int, rows: int) -> None:
    """Write the folder `initial`, which AutoModelForCausalLM loads, `sft/train_N.parquet` and the files
    `sft/validation_N.parquet` of each stage, and `data/train.parquet` and `data/validation.parquet` for rewards;
    `data_2` has those of two steps alone.
    """
    tokenizer = make_chain_tokenizer()
    recipe = Recipe(seed=seed, d_model=128, mlp_hidden_size=384)
    make_diffusion_model(tokenizer, recipe).save_pretrained(output_dir / "initial")
    tokenizer.save_pretrained(output_dir / "initial")
    for number, steps in enumerate(STAGES, start=1):
        for split, count in (("train", train_rows), ("validation", 256)):
            found = chats(count, steps, held_out=split == "validation", seed=seed)
            write_parquet(found, output_dir / "sft" / f"{split}_{number}.parquet")
    for split, count in (("train", recipe.rl_rows), ("validation", rows)):
        for folder, problems in (("data", STEPS), ("data_2", range(2, 3))):
            write_parquet(reward_rows(split, count, problems), output_dir / folder / f"{split}.parquet")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-rows", type=int, default=48_000, help="problems of each stage")
    parser.add_argument("--rows", type=int, default=512, help="validation problems")
    options = parser.parse_args(arguments)
    make(options.output_dir, seed=options.seed, train_rows=options.train_rows, rows=options.rows)
    return 0


def _draw_step(rng: random.Random, total: int) -> tuple[str, int, int]:
    """A sign, an operand, and the result, which is one of `TOTALS`."""
    while True:
        sign, operand = rng.choice("+-"), rng.choice(OPERANDS)
        result = total + operand if sign == "+" else total - operand
        if result in TOTALS:
            return sign, operand, result


if __name__ == "__main__":
    sys.exit(main())
