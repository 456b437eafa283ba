"""Numbers of an evaluation: the interval of a proportion, pass@k, and the summary of generations."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NORMAL_95 = 1.959963984540054


def wilson_interval(proportion: float, trials: int, z: float = NORMAL_95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, 1927).

    Args:
        proportion: observed share, 0 to 1.
        trials: independent trials, 1 or more.
        z: quantile of the normal distribution; the default gives 95 %.

    Returns:
        lower and upper end, within [0, 1].

    Raises:
        ValueError: a number outside its range.
    """
    if trials < 1 or not 0 <= proportion <= 1:
        raise ValueError(f"proportion={proportion} of trials={trials}: allowed are 0 to 1, of 1 or more")
    denominator = 1 + z * z / trials
    centre = (proportion + z * z / (2 * trials)) / denominator
    half = z / denominator * math.sqrt(proportion * (1 - proportion) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that one of k samples is correct: 1 − C(n − c, k) / C(n, k), unbiased (arXiv 2107.03374, Eq. 1).

    Args:
        samples: n, samples drawn.
        correct: c of them that are right, 0 to n.
        k: 1 to n.

    Raises:
        ValueError: a number outside its range.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"k={k}, correct={correct}: allowed are 1 to samples={samples}, and 0 to samples")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def summarise(rows: Iterable[Mapping[str, Any]], ks: Sequence[int] = ()) -> list[dict[str, Any]]:
    """One summary for each data source and generation length.

    Args:
        rows: generations as `evaluation.records` holds them.
        ks: the k of pass@k; only where the task has a right answer (`acc`), over prompts with at least k samples.

    Returns:
        in the order in which data source and length first come, dicts of

        - `data_source`, `length`, `prompts`, `generations`;
        - `failures`: generations whose scorer failed. They count as wrong, so `accuracy` is a lower bound;
        - `accuracy`: mean of `acc`, with `accuracy_low` and `accuracy_high`, Wilson's 95 % interval with the prompts as
          trials: samples of one prompt are not independent, and a share (sudoku) varies less than a yes or no;
        - `score`: mean reward; and `reward`: means of its components, over the generations that have them;
        - `effective_tokens`: mean tokens before the first stop token; `model_calls`: mean forward passes; their ratio
          `calls_per_token`, None where there is no token;
        - `pass@k` for each k.
    """
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["data_source"], row["length"]), []).append(row)
    return [_summary(source, length, group, ks) for (source, length), group in groups.items()]


def _summary(source: str, length: int, rows: Sequence[Mapping[str, Any]], ks: Sequence[int]) -> dict[str, Any]:
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["id"], []).append(row)
    tokens = sum(row["effective_tokens"] for row in rows)
    calls = sum(row["model_calls"] for row in rows)
    summary: dict[str, Any] = {
        "data_source": source,
        "length": length,
        "prompts": len(by_prompt),
        "generations": len(rows),
        "failures": sum(row["failure"] is not None for row in rows),
        "score": _mean(row["score"] for row in rows if row["score"] is not None),
        "reward": _component_means(rows),
        "effective_tokens": tokens / len(rows),
        "model_calls": calls / len(rows),
        "calls_per_token": calls / tokens if tokens else None,
    }
    if all(row["acc"] is None for row in rows):
        return summary
    accuracy = sum(row["acc"] or 0.0 for row in rows) / len(rows)
    low, high = wilson_interval(min(max(accuracy, 0.0), 1.0), len(by_prompt))
    summary |= {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}
    for k in ks:
        counts = [(len(group), sum(row["acc"] == 1.0 for row in group)) for group in by_prompt.values()]
        summary[f"pass@{k}"] = _mean(pass_at_k(n, c, k) for n, c in counts if n >= k)
    return summary


def _component_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    names = list(dict.fromkeys(name for row in rows for name in row["reward"]))
    return {name: _mean(row["reward"][name] for row in rows if name in row["reward"]) for name in names}


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
