"""Make a checkpoint and validation rows for `approximate.py`: a small LLaDA that solves word problems step by step.

  python benchmarks/make_chain_model.py --output-dir runs/chain

A problem has two to five steps, one sentence each. The response works them out line by line in one of two phrasings,
gives the result after `####`, and is filled with end tokens:

  Ann has 17 apples. On Monday she buys 5. On Friday she sells 3. How many apples?
  Monday: 17+5=22
  On Friday 22-3=19
  #### 19

The model is trained from scratch on problems that are not among the validation rows, in about half an hour on 2 cores.
"""

import argparse
import logging
import random
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "quickstart"))

from make_model import Recipe, make_diffusion_model, make_tokenizer

from maskgrpo_plugin.data.rows import verl_row, write_parquet
from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.models.special_tokens import answer_length
from maskgrpo_plugin.rewards import score

logger = logging.getLogger(__name__)

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

BLOCK = 16  # tokens


@dataclass(frozen=True)
class ChainRecipe(Recipe):
    """The model, and how it is trained."""

    response_length: int = 64
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    average_decay: float = 0.99
    max_steps: int = 6000
    evaluation_rows: int = 128
    target_accuracy: float = 0.9


RECIPE = ChainRecipe()


@dataclass(frozen=True)
class Stage:
    """What is learned until this share of the training: problems of so many steps, in responses of `length` tokens."""

    until: float
    steps: range
    length: int


CURRICULUM = (Stage(0.25, range(1, 2), 16), Stage(0.55, range(1, 3), 32), Stage(1.0, STEPS, RECIPE.response_length))


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


def encode(tokenizer: Any, problems: list[Problem], length: int) -> tuple[Tensor, Tensor]:
    """Prompts (B, P) padded on the left, and responses (B, length): the chain, then eos tokens.

    Raises:
        ValueError: a chain and its end token are longer than the response.
    """
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": problem.question}], tokenize=False)
        for problem in problems
    ]
    prompts = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    responses = []
    for problem in problems:
        chain = tokenizer.encode(problem.chain, add_special_tokens=False)
        if len(chain) >= length:
            raise ValueError(f"a response of {length} tokens is too short for a chain of {len(chain)} and an end token")
        responses.append(chain + [tokenizer.eos_token_id] * (length - len(chain)))
    return prompts["input_ids"], torch.tensor(responses)


@torch.no_grad()
def accuracy(model: nn.Module, tokenizer: Any, problems: list[Problem], recipe: ChainRecipe) -> float:
    """Share of problems that greedy decoding of one token a step in blocks solves, by the reward of GSM8K."""
    prompts, _ = encode(tokenizer, problems, recipe.response_length)
    stops = (tokenizer.eos_token_id,)
    sampler = build_sampler(
        "semi_autoregressive",
        steps=recipe.response_length,
        response_length=recipe.response_length,
        block_length=BLOCK,
        stop_token_ids=stops,
    )
    output = sampler.generate(
        model, prompts, (prompts != tokenizer.pad_token_id).long(), mask_token_id=tokenizer.mask_token_id
    )
    right = 0.0
    for problem, row in zip(problems, output.sequences[:, prompts.shape[1] :].tolist(), strict=True):
        text = tokenizer.decode(row[: answer_length(row, stops)])
        right += score("gsm8k", text, problem.answer)["acc"]
    return right / len(problems)


def block_loss(
    model: nn.Module,
    prompts: Tensor,
    responses: Tensor,
    mask_token_id: int,
    eos_token_id: int,
    generator: torch.Generator,
) -> Tensor:
    """Mean cross entropy at the masked tokens of one block a row, with what lies before it visible and after it masked:
    the canvases that semi-autoregressive decoding meets, one random block each, 1 to all of its tokens masked.

    Args:
        model: called as (input_ids) with `.logits` (B, P + L, V).
        prompts: (B, P), never masked.
        responses: (B, L), L a multiple of `BLOCK`; blocks after a row's first end token are left out.
        mask_token_id, eos_token_id: ids of the mask and the end token.
        generator: source of blocks and masks.

    Returns:
        A scalar, 0 or more.
    """
    rows, length = responses.shape
    blocks = (responses != eos_token_id).sum(-1) // BLOCK + 1
    start = (torch.rand(rows, generator=generator) * blocks).long().unsqueeze(1) * BLOCK
    level = ((torch.rand(1, generator=generator) + torch.arange(rows) / rows) % 1).unsqueeze(1)
    rank = torch.rand(rows, BLOCK, generator=generator).argsort(-1).argsort(-1)
    hidden = rank < (level * BLOCK).ceil().clamp(min=1)
    offset = torch.arange(length) - start
    inside = (offset >= 0) & (offset < BLOCK)
    learned = inside & hidden.gather(1, offset.clamp(0, BLOCK - 1))
    canvas = torch.cat([prompts, responses.masked_fill(learned | (offset >= BLOCK), mask_token_id)], dim=1)
    logits = model(canvas).logits[:, prompts.shape[1] :]
    return F.cross_entropy(logits[learned], responses[learned])


def pretrain(model: nn.Module, tokenizer: Any, recipe: ChainRecipe) -> tuple[float, list[float]]:
    """Train by AdamW through `CURRICULUM`, with a rate that falls to 0; the weights end as their running average.

    Returns:
        The accuracy on held-out problems, and the loss of each step.
    """
    rng = random.Random(f"pretraining/{recipe.seed}")
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / recipe.warmup_steps, 2 * (1 - step / recipe.max_steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average_decay))
    losses: list[float] = []

    def masked_model(canvas: Tensor) -> Any:
        return model(canvas, attention_mask=(canvas != tokenizer.pad_token_id).long())

    model.train()
    for stage in CURRICULUM:
        drawn = draw_problems(rng, stage.steps, held_out=False)
        while len(losses) < round(stage.until * recipe.max_steps):
            problems = [next(drawn) for _ in range(recipe.batch_size)]
            prompts, responses = encode(tokenizer, problems, stage.length)
            loss = block_loss(
                masked_model, prompts, responses, tokenizer.mask_token_id, tokenizer.eos_token_id, generator
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            losses.append(float(loss.detach()))
            if len(losses) % 100 == 0:
                logger.info("step %d: loss %.3f", len(losses), sum(losses[-100:]) / 100)
    model.load_state_dict(average.module.state_dict())
    held_out = draw_problems(random.Random(f"evaluation/{recipe.seed}"), STEPS, held_out=True)
    evaluation = [next(held_out) for _ in range(recipe.evaluation_rows)]
    return accuracy(model.eval(), tokenizer, evaluation, recipe), losses


def validation_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of held-out problems in verl's format, scored as GSM8K's."""
    problems = draw_problems(random.Random(f"validation/{seed}"), STEPS, held_out=True)
    return [
        verl_row(
            data_source="chain",
            task="gsm8k",
            content=problem.question,
            ground_truth=str(problem.answer),
            split="validation",
            index=index,
        )
        for index, problem in zip(range(count), problems, strict=False)
    ]


def make(output_dir: Path, recipe: ChainRecipe, rows: int) -> tuple[float, list[float]]:
    """Train a model; save it with its tokenizer, and `validation.parquet` beside it.

    Returns:
        As `pretrain`.
    """
    tokenizer = make_chain_tokenizer()
    model = make_diffusion_model(tokenizer, recipe)
    result = pretrain(model, tokenizer, recipe)
    output_dir.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    write_parquet(validation_rows(rows), output_dir / "validation.parquet")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0, or 1 where the model did not reach the target (it is written all the same)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=RECIPE.seed)
    parser.add_argument("--max-steps", type=int, default=RECIPE.max_steps)
    parser.add_argument("--rows", type=int, default=512, help="validation problems")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args(arguments)
    if options.max_steps < 1:
        parser.error(f"--max-steps must be 1 or more, got {options.max_steps}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    recipe = replace(RECIPE, seed=options.seed, max_steps=options.max_steps)
    measured, _ = make(options.output_dir, recipe, options.rows)
    sys.stdout.write(f"{options.output_dir}: held-out greedy accuracy {measured:.3f}\n")
    if measured < recipe.target_accuracy:
        sys.stderr.write(f"the target accuracy {recipe.target_accuracy} was not reached\n")
        return 1
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
