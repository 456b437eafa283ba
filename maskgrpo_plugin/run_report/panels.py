"""Which metrics are drawn together: panels with a title, the meaning of their vertical axis, and their place."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

LEVEL = r"actor/(?:level_(?P<level>\d+)/)?"
STAGE = re.compile(r"timing_s/([^/]+)")
WHOLE_STEP = "timing_s/step"


class Panel(NamedTuple):
    """Metrics that share a plot.

    Attributes:
        section: heading under which the panel stands.
        title: of the panel.
        axis: what the vertical axis measures.
        pattern: of the names of its metrics; the groups `name`, or else `level`, name the lines.
        note: one line that says how to read it.
    """

    section: str
    title: str
    axis: str
    pattern: str
    note: str = ""


REWARD, PARTS, KL, CLIP = "Reward and accuracy", "Reward components and failures", "KL divergence", "Clipping"
RATIOS, LOSS, LENGTHS = "Ratios and masks", "Loss and optimiser", "Lengths"
ROLLOUT, SPEED = "Rollout and actor", "Throughput and memory"
FAILURES = r"reward_failed|reward_timed_out|reward_sandbox_lost|.*_failed"

PANELS = (
    Panel(REWARD, "Training reward", "reward", r"critic/score/(?P<name>mean|min|max)"),
    Panel(REWARD, "Validation", "mean over the rows", r"val-core/(?P<name>.+)"),
    Panel(REWARD, "Training loss", "loss", r"train/(?P<name>loss)"),
    Panel(REWARD, "Validation loss", "loss", r"val/(?P<name>.+)"),
    Panel(PARTS, "Lost and failed samples", "samples", r"(?P<name>(?:reward|val-aux)/(?:lost|failed|dropped)_samples)"),
    Panel(PARTS, "Failures", "share of the samples", rf"reward/(?P<name>{FAILURES})"),
    Panel(PARTS, "Scoring time and batches", "s, or texts", r"reward/(?P<name>.*_latency_s|.*_batch_size)"),
    Panel(PARTS, "Reward components", "mean over the samples", r"reward/(?P<name>.+)"),
    Panel(PARTS, "Advantages", "advantage", r"critic/advantages/(?P<name>mean|min|max)"),
    Panel(KL, "KL to the reference", "nats per token", LEVEL + "kl_loss"),
    Panel(KL, "KL to the policy that sampled", "nats per token", LEVEL + "ppo_kl"),
    Panel(CLIP, "Clip fraction", "share of the tokens", LEVEL + "pg_clipfrac"),
    Panel(CLIP, "Clip fraction, lower bound", "share of the tokens", LEVEL + "pg_clipfrac_lower"),
    Panel(RATIOS, "Mean importance ratio", "ratio", LEVEL + "ratio_mean", "1 at the first update"),
    Panel(RATIOS, "Largest log-ratio", "nats", LEVEL + "log_ratio_abs_max"),
    Panel(RATIOS, "Mask level", "share of the tokens", LEVEL + "mask_ratio"),
    Panel(RATIOS, "Masked tokens", "share of the tokens", rf"(?:{LEVEL})?masked_share"),
    Panel(RATIOS, "Log-probability of masked tokens", "nats per token", LEVEL + "log_prob_mean"),
    Panel(LOSS, "Policy loss", "loss", LEVEL + "pg_loss"),
    Panel(LOSS, "Whole loss", "loss", LEVEL + "loss"),
    Panel(LOSS, "Gradient norm", "norm", rf"(?:train/|{LEVEL})grad_norm"),
    Panel(LOSS, "Learning rate", "rate", r"(?:actor|train)/lr"),
    Panel(LENGTHS, "Response length", "tokens", r"response_length/(?P<name>mean|min|max)"),
    Panel(LENGTHS, "Responses of full length", "share of the responses", r"response_length/clip_ratio"),
    Panel(LENGTHS, "Prompt length", "tokens", r"prompt_length/(?P<name>mean|min|max)"),
    Panel(
        ROLLOUT,
        "Gap between actor and server",
        "nats per token",
        r"rollout/actor_log_prob_gap",
        "mean absolute difference of their log-probabilities after a weight sync",
    ),
    Panel(ROLLOUT, "Model calls per token", "calls", r"rollout/model_calls_per_token"),
    Panel(ROLLOUT, "Batch fill", "share of the batch", r"rollout/batch_fill"),
    Panel(ROLLOUT, "Staleness of the rollouts", "steps", r"training/off_policy/trajectory_staleness/(mean|max)"),
    Panel(SPEED, "Time per step", "s", r"perf/(?:time_per_step|seconds)"),
    Panel(SPEED, "Throughput of training", "tokens/s", r"perf/(?:throughput|tokens_per_second)"),
    Panel(SPEED, "Throughput of the rollout", "tokens/s", r"rollout/tokens_per_s"),
    Panel(SPEED, "Memory", "GB", r"(?:actor/)?perf/(?P<name>.*_gb)"),
)
OTHER = "Other metrics"
HIDDEN = re.compile(r"timing_s/.*|training/global_step")  # drawn elsewhere, or the horizontal axis itself


def arrange(names: Sequence[str]) -> list[dict[str, Any]]:
    """The panels of these metrics, in order; a metric that no panel asks for has one of its own at the end.

    Args:
        names: of all metrics of all runs.

    Returns:
        Dictionaries `section`, `title`, `axis`, `note` and `series`, a list of `metric` and `label`.
    """
    left = dict.fromkeys(name for name in names if not HIDDEN.fullmatch(name))
    arranged = []
    for panel in PANELS:
        found = [(name, match) for name in left if (match := re.fullmatch(panel.pattern, name))]
        if not found:
            continue
        series = [{"metric": name, "label": _label(name, match.groupdict())} for name, match in found]
        series.sort(key=lambda line: _order(line["label"]))
        arranged.append(panel._asdict() | {"series": series})
        del arranged[-1]["pattern"]
        for name, _ in found:
            del left[name]
    for name in sorted(left):
        line = {"metric": name, "label": name}
        arranged.append({"section": OTHER, "title": name, "axis": "value", "note": "", "series": [line]})
    return arranged


def stages(names: Sequence[str]) -> list[str]:
    """The metrics of a step's stages, without the whole step's own, in the order in which they were logged."""
    return [name for name in names if STAGE.fullmatch(name) and name != WHOLE_STEP]


def _label(name: str, groups: dict[str, str | None]) -> str:
    if groups.get("name"):
        return str(groups["name"])
    if "level" in groups:
        return f"level {groups['level']}" if groups["level"] else "mean over the levels"
    return name.rpartition("/")[2]


def _order(label: str) -> tuple[int, int]:
    """Levels by number, after what is of all levels."""
    found = re.fullmatch(r"level (\d+)", label)
    return (1, int(found[1])) if found else (0, 0)
