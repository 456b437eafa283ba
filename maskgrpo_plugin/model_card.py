"""The model card of an exported checkpoint: how it was trained, as far as the run's folder says."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from maskgrpo_cli.metrics import MetricsFile, validation_text
from maskgrpo_plugin.run_files import POINTER, RECORD
from maskgrpo_plugin.version import __version__

CARD, CONFIG = "README.md", "training_config.yaml"
STEP = re.compile(r"global_step_(\d+)$")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
LICENCE = (
    "Not stated. Whoever publishes this model chooses its licence; those of base model and data bind it too. "
    "The Hub reads it from `license:` at the head of this file."
)
RL_SETTINGS = {  # what the card says → keys of the run's config, of which those that are set are shown
    "estimator": ("algorithm.estimation.estimator", "algorithm.estimation.mu", "algorithm.estimation.canvas"),
    "estimator's options": ("algorithm.estimation.options",),
    "advantage": ("algorithm.adv_estimator",),
    "loss": ("actor_rollout_ref.actor.policy_loss.loss_mode", "actor_rollout_ref.actor.kl_loss_coef"),
    "learning rate": ("actor_rollout_ref.actor.optim.lr",),
    "LoRA": ("actor_rollout_ref.model.lora_rank", "actor_rollout_ref.model.lora_alpha"),
    "batch": ("data.train_batch_size", "actor_rollout_ref.rollout.n"),
    "sampler": ("actor_rollout_ref.rollout.sampler.name", "actor_rollout_ref.rollout.sampler.options"),
    "data": ("data.train_files",),
}
SFT_SETTINGS = {
    "objective": ("model.model_type",),
    "learning rate": ("optim.lr",),
    "LoRA": ("model.lora_rank", "model.lora_alpha"),
    "batch": ("data.train_batch_size",),
    "data": ("data.train_files", "data.mixture"),
}


@dataclass(frozen=True)
class Training:
    """What is known of a checkpoint's training.

    Attributes:
        step: of the checkpoint; None: not known.
        name: of the run.
        config: the run's, resolved; empty where it left no record.
        versions: of python and packages that it ran with.
        validation: its last validation until that step, in words.
        base_model: what an adapter went onto, where the config does not say.
    """

    step: int | None = None
    name: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    validation: str = ""
    base_model: str | None = None

    @property
    def is_rl(self) -> bool:
        """Whether it was reinforcement learning, and not supervised."""
        return "actor_rollout_ref" in self.config

    @property
    def base(self) -> str | None:
        """The model that the run began with."""
        key = "actor_rollout_ref.model.path" if self.is_rl else "model.path"
        return select(self.config, key) or self.base_model


def read_training(model: str, base_model: str | None = None) -> Training:
    """What is found beside a checkpoint.

    Args:
        model: a folder of verl's checkpoints, one `global_step_N`, or an adapter.
        base_model: what an adapter goes onto, where it was given.
    """
    folder = Path(model).expanduser().absolute()
    root = next((each for each in (folder, *folder.parents[:2]) if (each / RECORD).is_file()), None)
    step = checkpoint_step(folder)
    adapter = folder / "adapter_config.json"
    if base_model is None and adapter.is_file():
        base_model = json.loads(adapter.read_text("utf-8")).get("base_model_name_or_path")
    record = _record(root / RECORD) if root else {}
    return Training(
        step=step,
        name=str(record.get("name", "")),
        config=record.get("config", {}),
        versions=record.get("versions", {}),
        validation=last_validation((start.get("metrics") for start in record.get("starts", [])), step),
        base_model=base_model,
    )


def checkpoint_step(folder: Path) -> int | None:
    """The step of a checkpoint by its folder's name, or of the last one in a folder of checkpoints."""
    for each in (folder, folder.parent):
        if found := STEP.search(each.name):
            return int(found[1])
    pointer = folder / POINTER
    said = pointer.read_text().strip() if pointer.is_file() else ""
    return int(said) if said.isdigit() else None


def last_validation(files: Iterable[str | None], step: int | None) -> str:
    """The last validation in files of verl's metrics, at most at `step`, in words; empty where there is none."""
    best, said = -1, ""
    for name in files:
        for row in MetricsFile(Path(name), None).read() if name else ():
            text = validation_text(row.data)
            if not text and "val/loss" in row.data:
                text = f"loss {row.data['val/loss']:.4g}"
            if text and best <= row.step and (step is None or row.step <= step):
                best, said = row.step, f"{text} (step {row.step})"
    return said


def write_card(folder: Path, training: Training) -> None:
    """Write the card and the run's config into an exported folder; a card that is there may be edited, and stays."""
    if training.config and not (folder / CONFIG).exists():
        text = yaml.safe_dump(dict(training.config), sort_keys=False, allow_unicode=True)
        (folder / CONFIG).write_text(text, encoding="utf-8")
    if not (folder / CARD).exists():
        (folder / CARD).write_text(card(training, folder.name), encoding="utf-8")


def card(training: Training, title: str) -> str:
    """The card as Markdown with the Hub's head.

    Args:
        training: what is known.
        title: where the run has no name.
    """
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["masked-diffusion", "maskgrpo_plugin"]}
    if training.base and HUB_NAME.fullmatch(training.base):
        head["base_model"] = training.base
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {_plain(training.name or title)}",
        _summary(training),
        "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {_plain(value)} |" for name, value in _rows(training))]),
        f"## Licence\n\n{LICENCE}",
    ]
    return "\n\n".join(parts) + "\n"


def select(values: Any, path: str) -> Any:
    """The value at a dotted path in nested dicts; None where there is none."""
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _summary(training: Training) -> str:
    if not training.config:
        return f"Its run left no `{RECORD}` beside the checkpoint, so that little is known of how it was trained."
    kind = "reinforcement learning" if training.is_rl else "supervised training"
    return f"Made by {kind} with maskgrpo_plugin on verl. `{CONFIG}` has all settings."


def _rows(training: Training) -> list[tuple[str, str]]:
    total = select(training.config, "trainer.total_training_steps")
    step = None if training.step is None else f"{training.step}{f' of {total}' if total else ''}"
    settings = RL_SETTINGS if training.is_rl else SFT_SETTINGS
    rows: list[tuple[str, Any]] = [("base model", training.base), ("steps", step)]
    rows += [(name, _settings(training.config, keys)) for name, keys in settings.items()]
    versions = ", ".join(f"{name} {value}" for name, value in training.versions.items() if value)
    rows += [("last validation", training.validation), ("trained with", versions)]
    rows.append(("exported with", f"maskgrpo_plugin {__version__}"))
    return [(name, str(value)) for name, value in rows if value]


def _settings(config: Mapping[str, Any], keys: Iterable[str]) -> str:
    """`estimator=maskgrpo, mu=12`; of a section its keys; nothing for what is not set."""
    found = []
    for key in keys:
        value = select(config, key)
        if isinstance(value, Mapping):
            found += [f"{name}={inner}" for name, inner in value.items() if inner is not None]
        elif value not in (None, 0, "", []):
            found.append(f"{key.rpartition('.')[2]}={value}")
    return ", ".join(found)


def _plain(text: str) -> str:
    """Text that is neither a new row nor a new column of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _record(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
