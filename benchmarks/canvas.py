"""Learning under each setting of `canvas`, in one process without Ray: the quickstart's model, rows and settings.

  python benchmarks/canvas.py --model runs/quickstart/model --data runs/quickstart/data --seeds 0 --output canvas.jsonl

A step is that of configs/quickstart.yaml by the package's own parts: rollouts of the semi-autoregressive sampler,
scores, group advantages, the estimator's passes for old, reference and new policy, the clipped loss with k3, AdamW.
Accuracy is greedy, on the validation rows. Every line of the output is one evaluation; the table comes at the end.
"""

import argparse
import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from approximate import prompts, texts
from common import write_table
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from verl.trainer.ppo.core_algos import agg_loss

from maskgrpo_plugin.diffusion.estimators import CANVASES, Estimator, Pass, Rows, build_estimator
from maskgrpo_plugin.diffusion.random import combine_seed
from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.models.special_tokens import stop_token_ids
from maskgrpo_plugin.rewards import score
from maskgrpo_plugin.trainer.advantages import group_advantages
from maskgrpo_plugin.trainer.losses.maskgrpo import maskgrpo_loss

LENGTH, PROMPTS, GROUP, CLIP, BETA, LEARNING_RATE = 8, 16, 8, 0.2, 0.01, 1e-4


class Run:
    """One training run.

    Args:
        folder: the start model.
        canvas: of the estimator.
        seed: of the order of rows, the sampling and the masks.
    """

    def __init__(self, folder: str, canvas: str, seed: int):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.reference = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        self.estimator = build_estimator("maskgrpo", mu=2, canvas=canvas)
        self.stops = stop_token_ids(self.tokenizer)
        self.mask_token_id = self.model.config.mask_token_id
        self.seed, self.step = seed, 0

    def sample(self, rows: list[dict], temperature: float, seeds: list[int]) -> tuple[Any, Tensor, Tensor | None]:
        """Generations of rows, the prompts (B, P), and their mask where they are padded."""
        ids, mask = prompts(self.tokenizer, rows, torch.device("cpu"))
        sampler = build_sampler(
            "semi_autoregressive",
            steps=8,
            response_length=LENGTH,
            block_length=4,
            temperature=temperature,
            stop_token_ids=self.stops,
        )
        given = None if bool(mask.all()) else mask
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        output = sampler.generate(self.model, ids, given, mask_token_id=self.mask_token_id, generator=generators)
        return output, ids, given

    def accuracy(self, rows: list[dict]) -> float:
        """Share of right greedy answers."""
        right = []
        for start in range(0, len(rows), 128):
            part = rows[start : start + 128]
            output, _, _ = self.sample(part, 0.0, [0] * len(part))
            right += [answer["acc"] for answer in self.scores(part, output)]
        return sum(right) / len(right)

    def scores(self, rows: list[dict], output: Any) -> list[dict[str, float]]:
        """What the task's scorer says of each answer."""
        answers = texts(self.tokenizer, [output], LENGTH, self.stops)
        return [
            score(row["extra_info"]["task"], text, row["reward_model"]["ground_truth"])
            for row, (_, text) in zip(rows, answers, strict=True)
        ]

    def train(self, rows: list[dict]) -> None:
        """One step over `PROMPTS` rows: a group each, then the estimator's updates."""
        group = [row for row in rows for _ in range(GROUP)]
        seeds = [combine_seed(self.seed, self.step, n) for n in range(len(group))]
        output, ids, mask = self.sample(group, 1.0, seeds)
        rewards = torch.tensor([found["score"] for found in self.scores(group, output)])
        names = np.array([str(n // GROUP) for n in range(len(group))], dtype=object)
        advantages = group_advantages(rewards, names)
        attended = torch.ones_like(output.sequences, dtype=torch.bool)
        if mask is not None:
            attended[:, : ids.shape[1]] = mask.bool()
        response = torch.zeros_like(attended)
        response[:, ids.shape[1] :] = True
        batch = Rows(
            tokens=output.sequences,
            response=response,
            prompt=attended & ~response,
            attended=attended,
            keys=torch.arange(len(group)) % GROUP,
            mask_token_id=self.mask_token_id,
            stop_token_ids=self.stops,
            reveal_step=output.reveal_step,
        )
        updates = [
            self.estimator.passes(batch, seed=self.seed, step=self.step, update=n)
            for n in range(self.estimator.updates)
        ]
        with torch.no_grad():
            before = [
                [estimate(model, self.estimator, batch, passes) for model in (self.model, self.reference)]
                for passes in updates
            ]
        for passes, (old, reference) in zip(updates, before, strict=True):
            counted = self.estimator.counted(batch, passes)
            new = estimate(self.model, self.estimator, batch, passes)
            loss = objective(new, old, reference, advantages, counted)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
        self.step += 1


def estimate(model: Any, estimator: Estimator, rows: Rows, passes: list[Pass]) -> Tensor:
    """ℓ̂ of every token, (B, L)."""
    found = []
    for one in passes:
        output = model(
            one.noisy,
            attention_mask=estimator.attended(rows).long(),
            logits_positions=one.scored,
            target_ids=rows.tokens[one.scored],
        )
        found.append(torch.zeros(one.scored.shape).masked_scatter(one.scored, output.log_probs))
    return estimator.fold(passes, found)


def objective(new: Tensor, old: Tensor, reference: Tensor, advantages: Tensor, counted: Tensor) -> Tensor:
    """MaskGRPO's loss and β·k3 over the counted tokens."""
    info = {"dp_size": 1, "batch_num_tokens": int(counted.sum()), "global_batch_size": len(new)}
    config = SimpleNamespace(
        clip_ratio=CLIP, clip_ratio_low=CLIP, clip_ratio_high=CLIP, global_batch_info=info | {"loss_scale_factor": None}
    )
    policy, _ = maskgrpo_loss(old, new, advantages[:, None].expand(new.shape), counted, "token-mean", config)
    difference = reference - new
    kl = agg_loss(difference.exp() - difference - 1, counted, "token-mean", **config.global_batch_info)
    return policy + BETA * kl


def main() -> None:
    """Train every canvas for every seed, and print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the start model; {seed} stands for the seed")
    parser.add_argument("--data", required=True, help="folder with train.parquet and validation.parquet; likewise")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--canvases", nargs="+", choices=CANVASES, default=["masked", "visible", "full"])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--every", type=int, default=16, help="steps between evaluations")
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines; runs that it holds are kept")
    options = parser.parse_args()
    lines = options.output.read_text().splitlines() if options.output.is_file() else []
    found = {(r["seed"], r["canvas"], r["step"]): r["accuracy"] for r in map(json.loads, lines)}
    for seed in options.seeds:
        data = Path(options.data.format(seed=seed))
        train, validation = (pq.read_table(data / f"{part}.parquet").to_pylist() for part in ("train", "validation"))
        order = np.random.default_rng(seed).permutation(len(train))
        for canvas in options.canvases:
            if (seed, canvas, options.steps) in found:
                continue
            run = Run(options.model.format(seed=seed), canvas, seed)
            for step in range(options.steps + 1):
                if step % options.every == 0:
                    found[seed, canvas, step] = run.accuracy(validation)
                    row = {"seed": seed, "canvas": canvas, "step": step, "accuracy": found[seed, canvas, step]}
                    with options.output.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                if step < options.steps:
                    chosen = np.take(order, range(step * PROMPTS, (step + 1) * PROMPTS), mode="wrap")
                    run.train([train[n] for n in chosen])
    steps = range(0, options.steps + 1, options.every)
    table = [
        [canvas, str(seed), *(f"{found[seed, canvas, step]:.3f}" for step in steps)]
        for canvas in options.canvases
        for seed in options.seeds
    ]
    write_table(["canvas", "seed", *(f"step {step}" for step in steps)], table)


if __name__ == "__main__":
    main()
