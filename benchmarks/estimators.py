"""How good estimates of log-ratio and policy gradient are, by the passes they spend, against exact values.

  python benchmarks/estimators.py --model runs/quickstart/model --moved runs/quickstart/trained \
    --data runs/quickstart/data --output estimators.jsonl --figure estimators.png

Completions of some training rows are sampled and scored once. Three quantities of a completion are exact: its evidence
bound, by all masks of its tokens; the log-probability of its trajectory, token by token in the state that the sampler
saw; and that of its tokens from left to right. Estimates of each are drawn again and again with new masks.

The gradient is that of Σ A·Σ ℓ̂ / Σ tokens over the whole batch, which is the policy gradient of the first update. The
log-ratio is per token, (Σ ℓ̂ - Σ ℓ̂_old) / tokens, from the model to the one that lies --step of the way to --moved.
Every estimator has the canvas `masked`, so that all of them score the same tokens.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch
from common import write_table
from torch import Tensor
from torch.nn.functional import cosine_similarity

from maskgrpo_plugin.diffusion.estimators import Estimator, Pass, Rows, build_estimator
from maskgrpo_plugin.diffusion.estimators.plan import mask_keys
from maskgrpo_plugin.diffusion.likelihood import masked_log_probs
from maskgrpo_plugin.diffusion.samplers.base import logits_at
from maskgrpo_plugin.trainer.losses import LOSSES

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "methods"))

CHUNK = 1024  # canvases per pass of the model
LONGEST = 12  # tokens of an answer whose masks are all enumerated
AR_LIKE = {"gamma": 0.6, "remasking": "ar_like"}


@dataclass(frozen=True)
class Kind:
    """A way to estimate.

    Attributes:
        estimator: its registered name.
        options: what makes it so.
        size: the option that the budget sets: updates, draws, segments or positions.
        cost: passes per unit of it.
        sharing: whose masks are equal, see `mask_keys`.
    """

    estimator: str
    options: dict[str, Any]
    size: str
    cost: int = 1
    sharing: str = "sample"

    def build(self, passes: int) -> Estimator | None:
        """The estimator that spends so many passes on a completion; None where there is none."""
        if passes % self.cost:
            return None
        options = {"canvas": "masked", **self.options, self.size: passes // self.cost}
        return build_estimator(self.estimator, **options)


KINDS = {
    "maskgrpo": Kind("maskgrpo", AR_LIKE, "mu"),
    "maskgrpo, masks shared by number": Kind("maskgrpo", AR_LIKE, "mu", sharing="index"),
    "maskgrpo, masks shared by group": Kind("maskgrpo", AR_LIKE, "mu", sharing="group"),
    "maskgrpo, without truncation": Kind("maskgrpo", AR_LIKE | {"gamma": 1e-6}, "mu"),
    "maskgrpo, random masks": Kind("maskgrpo", {"gamma": 0.6, "remasking": "random"}, "mu"),
    "maskgrpo, random masks, without truncation": Kind("maskgrpo", {"gamma": 1e-6, "remasking": "random"}, "mu"),
    "unigrpo": Kind("unigrpo", {}, "mu"),
    "diffu_grpo": Kind("diffu_grpo", {"prompt_mask_ratio": 0.15}, "mu"),
    "coupled": Kind("coupled", {}, "mu", cost=3),
    "trajectory, segments (d2)": Kind("trajectory", {}, "segments"),
    "elbo (BGPO)": Kind("elbo", {"mu": 1}, "draws"),
    "elbo, complements (ESPO)": Kind("elbo", {"mu": 1, "complement": True}, "draws", cost=2),
    "elbo, gauss-3 (GDPO)": Kind("elbo", {"mu": 1, "nodes": "gauss-3"}, "draws", cost=3),
    "elbo, blocks of 2 (EBPO)": Kind("elbo", {"mu": 1, "block_length": 2}, "draws"),
    "elbo, not weighted (GDSD)": Kind("elbo", {"mu": 1, "complement": True, "weighting": "none"}, "draws", cost=2),
    "spg, blocks of 4": Kind("spg", {"mu": 1, "block_length": 4}, "draws"),
    "positions (JustGRPO)": Kind("positions", {"mu": 1}, "sampled"),
}
BUDGETS = (1, 2, 3, 4, 6, 8, 12)
EXACT = ("bound", "trajectory", "left to right")


@dataclass(frozen=True)
class Batch:
    """Completions whose advantages are known.

    Attributes:
        rows: B of them.
        advantages: (B,) float.
        keys: of masks, by the name of their sharing; (B,) int64 each.
    """

    rows: Rows
    advantages: Tensor
    keys: dict[str, Tensor]


def log_probs(model: torch.nn.Module, rows: Rows, done: Pass, chosen: Tensor) -> Tensor:
    """(b, L) float64, log π of a pass's scored tokens in the chosen rows (b,), 0 elsewhere."""
    scored = done.scored[chosen]
    logits = logits_at(model, done.noisy[chosen], rows.attended[chosen].long(), scored)
    found, _ = masked_log_probs(logits.double(), lambda rows: rows, rows.tokens[chosen][scored])
    return torch.zeros(scored.shape, dtype=torch.float64).masked_scatter(scored, found)


def estimate(model: torch.nn.Module, rows: Rows, estimator: Estimator, passes: Sequence[Pass]) -> Tensor:
    """(B, L) estimates ℓ̂, or (B, L, 2) bounds, of one update; of estimates that stand apart the mean."""
    everything = torch.arange(len(rows.tokens))
    values = [log_probs(model, rows, done, everything) for done in passes]
    return estimator.fold(passes, values) / estimator.estimates


def chosen_bound(values: Tensor, advantages: Tensor) -> Tensor:
    """Of bounds (B, L, 2) those that SPG's loss takes at the advantages (B,), (B, L); others as they are."""
    return values if values.dim() == 2 else LOSSES.build("spg").chosen(values, advantages.unsqueeze(-1))


def masks_of(length: int) -> Tensor:
    """(2^n − 1, n) bool: all masks but the empty one."""
    return torch.tensor(list(product((False, True), repeat=length)))[1:]


def exact_bound(rows: Rows) -> Iterator[tuple[Pass, Tensor]]:
    """Passes whose weighted sums add up to the evidence bounds, and the row (b,) of each of their canvases.

    Σ over the masks M of n tokens of 1/(|M|·C(n, |M|)) · Σ_{i∈M} π_i is Σ_{l=1..n} 1/l · E_{|M|=l} Σ_{i∈M} π_i.

    Raises:
        ValueError: an answer of more than `LONGEST` tokens.
    """
    estimator = build_estimator("elbo", mu=1)
    maskable, clean = estimator.maskable(rows), estimator.clean(rows)
    for row, places in enumerate(maskable):
        length = int(places.sum())
        if length > LONGEST:
            raise ValueError(f"an answer has {length} tokens; all masks are enumerated up to {LONGEST}")
        if not length:
            continue
        masks = torch.zeros(2**length - 1, len(places), dtype=torch.bool)
        masks[:, places] = masks_of(length)
        size = masks.sum(-1, keepdim=True)
        weight = torch.tensor([1 / (n * math.comb(length, n)) for n in size.flatten().tolist()]).double()
        noisy = clean[row].expand_as(masks).masked_fill(masks, rows.mask_token_id)
        yield Pass(noisy, masks, masks * weight.unsqueeze(-1)), torch.full((len(masks),), row)


def exact_passes(rows: Rows, name: str) -> Iterator[tuple[Pass, Tensor]]:
    """The passes of an exact quantity, see `EXACT`, as `exact_bound` gives them."""
    everything = torch.arange(len(rows.tokens))
    if name == "bound":
        yield from exact_bound(rows)
        return
    if name == "left to right":  # the trajectory of one token per step, in their order
        rows = replace(rows, reveal_step=rows.response_blocks(1))
    estimator = build_estimator("trajectory", mu=1, shrink=1)
    for done in estimator.passes(rows, seed=0, step=0, update=0):
        yield done, everything


def exact_sums(model: torch.nn.Module, rows: Rows, name: str, weights: Tensor | None = None) -> Tensor:
    """(B,) float64, an exact quantity of each completion; with `weights` (B,) its gradient is added to the model's."""
    total = torch.zeros(len(rows.tokens), dtype=torch.float64)
    for done, of in exact_passes(rows, name):
        for part in torch.arange(len(of)).split(CHUNK):
            piece = Pass(done.noisy[part], done.scored[part], done.weight[part])
            small = replace(rows, tokens=rows.tokens[of[part]], attended=rows.attended[of[part]])
            with torch.set_grad_enabled(weights is not None):
                values = log_probs(model, small, piece, torch.arange(len(part)))
                sums = (values * piece.weight).sum(-1)
            if weights is not None:
                (sums * weights[of[part]]).sum().backward()
            total.index_add_(0, of[part], sums.detach())
    return total


def gradient(model: torch.nn.Module, backward: Callable[[], Any]) -> Tensor:
    """The gradient of all parameters after `backward`, as one vector."""
    model.zero_grad()
    backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()


def one_draw(model: torch.nn.Module, moved: torch.nn.Module, batch: Batch, kind: Kind, estimator: Estimator, seed: int):
    """One estimate with the masks of a seed.

    Returns:
        The gradient over all of its updates, and (B,) log-ratios per token.
    """
    rows = replace(batch.rows, keys=batch.keys[kind.sharing])
    ratio, tokens = torch.zeros(len(rows.tokens), dtype=torch.float64), torch.zeros(len(rows.tokens))
    updates = [estimator.passes(rows, seed=seed, step=0, update=update) for update in range(estimator.updates)]

    def backward() -> None:
        for passes in updates:
            counted = estimator.counted(rows, passes)
            values = estimate(model, rows, estimator, passes)
            chosen = chosen_bound(values, batch.advantages) * counted
            loss = (chosen.sum(-1) * batch.advantages).sum() / counted.sum() / len(updates)
            loss.backward()
            with torch.no_grad():
                there = chosen_bound(estimate(moved, rows, estimator, passes), batch.advantages) * counted
            ratio.add_((there - chosen.detach()).sum(-1))
            tokens.add_(counted.sum(-1))

    found = gradient(model, backward)
    return found, ratio / tokens.clamp(min=1)


def quality(draws: Sequence[Tensor], exact: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Cosines of single estimates and of their mean with exact gradients, and the ratio of the norms."""
    mean = torch.stack(list(draws)).mean(0)
    return {
        name: {
            "cosine": sum(float(cosine_similarity(d, g, dim=0)) for d in draws) / len(draws),
            "cosine of the mean": float(cosine_similarity(mean, g, dim=0)),
            "norm": sum(float(d.norm()) for d in draws) / len(draws) / float(g.norm()),
        }
        for name, g in exact.items()
    }


def ratio_errors(draws: Sequence[Tensor], exact: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Bias and deviation of log-ratios, root mean squares over the completions, in units of the exact ones' root mean
    square. The square of the bias is corrected for what chance alone would give, and is 0 at least.
    """
    values = torch.stack(list(draws))
    variance = values.var(0) if len(draws) > 1 else torch.zeros_like(values[0])
    return {
        name: {
            "bias": float(
                ((values.mean(0) - r).square() - variance / len(draws)).mean().clamp(min=0).sqrt()
                / r.square().mean().sqrt()
            ),
            "deviation": float(variance.mean().sqrt() / r.square().mean().sqrt()),
        }
        for name, r in exact.items()
    }


def make_batch(options: argparse.Namespace) -> tuple[torch.nn.Module, torch.nn.Module, Batch]:
    """The model, the moved one, and completions with advantages."""
    from harness import Run, batches, places, read_config, read_rows
    from transformers import AutoModelForCausalLM

    from maskgrpo_plugin.workers.engine.passes import rows_of

    overrides = [
        *places(options.model, options.data),
        f"data.train_batch_size={options.prompts}",
        *options.overrides,
    ]
    run = Run(read_config(options.config, overrides), seed=options.seed)
    train = read_rows(options.data, "train")
    numbers = next(batches(len(train), options.prompts, options.seed))
    rollouts = run.roll_out([train[n] for n in numbers], numbers)
    plan = run.estimation.plan(0, stop_token_ids=run.family.stop_token_ids, block_length=None)
    needs = build_estimator("trajectory", mu=1, shrink=1)
    rows = rows_of(rollouts.data, plan, needs, run.family.mask_token_id)
    advantages = run.advantages(rollouts).to_padded_tensor(0)[:, 0].double()
    size = run.config.actor_rollout_ref.rollout.n
    sessions = [n % size for n in range(len(rows.tokens))]
    named = [n for n in numbers for _ in range(size)]
    keys = {how: torch.tensor(mask_keys(named, sessions, how)) for how in ("index", "group", "sample")}
    moved = AutoModelForCausalLM.from_pretrained(options.moved, dtype=torch.float32).eval()
    with torch.no_grad():
        for here, there in zip(run.model.parameters(), moved.parameters(), strict=True):
            there.copy_(here + options.step * (there - here))
    return run.model, moved, Batch(rows, advantages, keys)


def main() -> None:
    """Measure what the output does not hold yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
    parser.add_argument("--config", default="quickstart", help="of the rollouts and advantages; default quickstart")
    parser.add_argument("--model", required=True, help="folder of the model that samples")
    parser.add_argument("--moved", required=True, help="folder of a model that was trained from it")
    parser.add_argument("--step", type=float, default=0.1, help="how far to it log-ratios are taken; default 0.1")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and validation.parquet")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--draws", type=int, default=32, help="estimates of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS), help="passes per completion")
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines; what it holds is kept")
    parser.add_argument("--figure", type=Path, help="a picture of cosine by passes")
    options = parser.parse_args()
    found = read(options.output)
    wanted = [(name, passes) for name in options.kinds for passes in options.budgets if KINDS[name].build(passes)]
    if missing := [cell for cell in wanted if cell not in found]:
        found |= measure(missing, options)
    found = {cell: found[cell] for cell in wanted}
    write_tables(found)
    if options.figure:
        draw(found, options.figure)


def read(file: Path) -> dict[tuple[str, int], dict]:
    """The lines of an output, by kind and passes."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return {(line["kind"], line["passes"]): line for line in map(json.loads, lines)}


def measure(cells: Sequence[tuple[str, int]], options: argparse.Namespace) -> dict[tuple[str, int], dict]:
    """The lines of some cells, which are added to the output."""
    model, moved, batch = make_batch(options)
    tokens = build_estimator("elbo", mu=1).maskable(batch.rows).sum(-1).double()
    weights = batch.advantages / tokens.sum()
    gradients = {n: gradient(model, lambda n=n: exact_sums(model, batch.rows, n, weights)) for n in EXACT}
    ratios = {n: (exact_sums(moved, batch.rows, n) - exact_sums(model, batch.rows, n)) / tokens for n in EXACT}
    between = {
        f"{a}, {b}": float(cosine_similarity(gradients[a], gradients[b], dim=0)) for a, b in combinations(EXACT, 2)
    }
    sys.stderr.write(f"{len(tokens)} completions, {tokens.mean():.2f} tokens each; cosines of the exact: {between}\n")
    found = {}
    for name, passes in cells:
        kind = KINDS[name]
        estimator = kind.build(passes)
        assert estimator is not None
        drawn = [one_draw(model, moved, batch, kind, estimator, seed) for seed in range(options.draws)]
        line = {"kind": name, "passes": passes, "draws": options.draws, "exact": between}
        line["gradient"] = quality([g for g, _ in drawn], gradients)
        if estimator.score != "bounds":
            line["ratio"] = ratio_errors([r for _, r in drawn], ratios)
        with options.output.open("a") as file:
            file.write(json.dumps(line) + "\n")
        found[name, passes] = line
    return found


def write_tables(found: dict[tuple[str, int], dict]) -> None:
    """Print what was measured."""
    header = ["estimator", "passes", *(f"{n}: one, mean, norm" for n in EXACT)]
    write_table(
        header,
        [
            [name, str(passes), *(", ".join(f"{value:.3f}" for value in line["gradient"][n].values()) for n in EXACT)]
            for (name, passes), line in found.items()
        ],
    )
    sys.stdout.write("\n")
    write_table(
        ["estimator", "passes", *(f"{n}: bias, deviation" for n in EXACT)],
        [
            [name, str(passes), *(", ".join(f"{value:.3f}" for value in line["ratio"][n].values()) for n in EXACT)]
            for (name, passes), line in found.items()
            if "ratio" in line
        ],
    )


def draw(found: dict[tuple[str, int], dict], file: Path) -> None:
    """The cosine of one estimate with each exact gradient, by passes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(EXACT), figsize=(15, 4.5), sharey=True)
    names = list(dict.fromkeys(name for name, _ in found))
    for axis, exact in zip(axes, EXACT, strict=True):
        for number, name in enumerate(names):
            points = [(p, line["gradient"][exact]["cosine"]) for (n, p), line in found.items() if n == name]
            style = ("-", "--", ":")[number // 10 % 3]
            axis.plot(*zip(*points, strict=True), style, color=f"C{number % 10}", label=name, marker=".")
        axis.set_xscale("log", base=2)
        axis.set_xlabel("passes per completion")
        axis.set_title(f"exact gradient of the {exact if exact != EXACT[2] else 'likelihood from left to right'}")
    axes[0].set_ylabel("cosine of one estimate")
    axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    main()
