"""The config section `reward.image`: which scorers an image's reward is made of, and the check of it on the driver."""

import importlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from maskgrpo_plugin.errors import OptionError, check_choice, check_keys, first_line
from maskgrpo_plugin.rewards.failures import FAILURE_POLICIES
from maskgrpo_plugin.rewards.images.registry import ScorerEntry, check_option_names, get_scorer, resolve, scorer_kinds
from maskgrpo_plugin.rewards.sections import plain

SECTION = "reward.image"
IMAGE_REWARD_MANAGER = "maskgrpo_image"


@dataclass(frozen=True)
class ScorerConfig:
    """One scorer of the reward.

    Attributes:
        name: how its numbers are called in the log.
        kind: a registered scorer; its name where neither this nor `factory` is given.
        factory: in place of `kind`, an import path `package.module:name` or `path/to/file.py:name`.
        weight: the reward is the sum of weight · score.
        options: keyword arguments of the factory.
        num_cpus, num_gpus: what Ray sets aside for each replica; parts are allowed.
        replicas: actors that share the work.
        max_batch: most images per batch.
        max_wait_ms: how long an image waits for others before a batch that is not full runs, in ms.
        timeout_s: how long a sample's score may take, waiting included, in seconds.

    Raises:
        OptionError: a value out of range.
    """

    name: str
    kind: str | None = None
    factory: str | None = None
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    num_cpus: float = 0.1
    num_gpus: float = 0.0
    replicas: int = 1
    max_batch: int = 16
    max_wait_ms: float = 20.0
    timeout_s: float = 300.0

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", self.name) or self.name in ("score", "acc", "reward_failed"):
            raise OptionError(
                f"{SECTION}.scorers", self.name, "a scorer's name is letters, digits and _, and not score"
            )
        if self.kind is not None and self.factory is not None:
            raise OptionError(self.key("factory"), self.factory, "give either kind or factory")
        for name, low in (("num_cpus", 0), ("num_gpus", 0), ("max_wait_ms", 0)):
            if not _is_number(getattr(self, name)) or getattr(self, name) < low:
                raise OptionError(self.key(name), getattr(self, name), f"allowed: {low} or more")
        for name in ("replicas", "max_batch"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise OptionError(self.key(name), getattr(self, name), "allowed: whole numbers from 1")
        if not _is_number(self.timeout_s) or self.timeout_s <= 0:
            raise OptionError(self.key("timeout_s"), self.timeout_s, "allowed: more than 0")
        if not _is_number(self.weight):
            raise OptionError(self.key("weight"), self.weight, "allowed: a number")

    def key(self, name: str) -> str:
        """The full name of one of the scorer's keys."""
        return f"{SECTION}.scorers.{self.name}.{name}"

    def place(self) -> str:
        """What makes the scorer: the factory's import path, else a registered kind."""
        return self.factory or self.kind or self.name


@dataclass(frozen=True)
class ImageRewardConfig:
    """The section `reward.image`.

    Attributes:
        scorers: what the reward is made of, at least one.
        on_failure: what becomes of a sample one of whose scorers failed: `raise`, `drop_sample`, `mean_of_group`
            (`rewards.failures`).
        startup_timeout_s: how long the scorers may take to load, in seconds.

    Raises:
        OptionError: a value that cannot work.
    """

    scorers: tuple[ScorerConfig, ...]
    on_failure: str = "raise"
    startup_timeout_s: float = 900.0

    def __post_init__(self):
        check_choice(f"{SECTION}.on_failure", self.on_failure, FAILURE_POLICIES)
        if not self.scorers:
            raise OptionError(f"{SECTION}.scorers", {}, f"name at least one; there are {', '.join(scorer_kinds())}")
        if not _is_number(self.startup_timeout_s) or self.startup_timeout_s <= 0:
            raise OptionError(f"{SECTION}.startup_timeout_s", self.startup_timeout_s, "allowed: more than 0")

    @classmethod
    def from_config(cls, section: Any) -> "ImageRewardConfig":
        """Read the section of a composed config, or a dict.

        Raises:
            OptionError: it is missing, or holds a key or a value that cannot work.
        """
        values = plain(section)
        if not isinstance(values, Mapping):
            raise OptionError(SECTION, values, f"the reward manager {IMAGE_REWARD_MANAGER} needs this section")
        values = {key: value for key, value in values.items() if key != "_target_"}
        _check_keys(SECTION, values, cls)
        found = values.pop("scorers", None) or {}
        if not isinstance(found, Mapping):
            raise OptionError(f"{SECTION}.scorers", found, "write a name and its settings for each scorer")
        # a default scorer is taken out of a run by setting it to null
        made = tuple(_scorer(str(name), settings) for name, settings in found.items() if settings is not None)
        return cls(scorers=made, **values)


def check_image_reward_config(config: DictConfig) -> None:
    """Check the image rewards of a run on the driver, before anything starts; nothing where the run has none.

    Scorers are not loaded, but the libraries that they need are imported, their files looked for, and remote servers
    asked whether they are there.

    Args:
        config: the composed config of `verl.trainer.main_ppo`.

    Raises:
        OptionError: the first key that cannot work, with its value and what is allowed.
    """
    if config.reward.reward_manager.name != IMAGE_REWARD_MANAGER:
        return
    path = OmegaConf.select(config, "reward.custom_reward_function.path")
    if path:
        raise OptionError(
            "reward.custom_reward_function.path", path, f"use {SECTION}.scorers.<name>.factory for images"
        )
    settings = ImageRewardConfig.from_config(config.reward.get("image"))
    for scorer in settings.scorers:
        check_scorer(scorer)
    _check_gpus(config, settings)


def check_scorer(scorer: ScorerConfig) -> None:
    """Check that a scorer can be made, without making it.

    Raises:
        OptionError: an unknown kind, a library that is not installed, an option that cannot work, a server that is
            not there.
    """
    try:
        entry = ScorerEntry(resolve(scorer.factory)) if scorer.factory else get_scorer(scorer.place())
        for module in entry.requires:
            _check_library(module, entry.extra)
        problem = _option_problem(entry, scorer.options)
    except (ValueError, ImportError) as error:
        cause = error.allowed if isinstance(error, OptionError) else str(error)
        key = "factory" if scorer.factory is not None else "kind"
        raise OptionError(scorer.key(key), scorer.place(), cause) from error
    if problem is not None:
        raise problem.under(scorer.key("options"))


def image_reward_cpus(config: DictConfig) -> float:
    """CPUs that the run's image scorers take in Ray; 0 where it has none."""
    if config.reward.reward_manager.name != IMAGE_REWARD_MANAGER:
        return 0.0
    settings = ImageRewardConfig.from_config(config.reward.get("image"))
    return sum(scorer.num_cpus * scorer.replicas for scorer in settings.scorers)


def _option_problem(entry: ScorerEntry, options: Mapping[str, Any]) -> OptionError | None:
    """What is wrong with a scorer's options, if anything is."""
    try:
        check_option_names(entry.factory, options)
        if entry.check is not None:
            entry.check(options)
    except OptionError as error:
        return error
    return None


def _check_library(module: str, extra: str | None) -> None:
    """Raise ImportError, with what to install, unless the module can be imported."""
    advice = f"pip install 'maskgrpo-plugin[{extra}]'" if extra else f"install {module}"
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise ImportError(f"it needs {module}, which needs {error.name}: {advice}") from error
        raise ImportError(f"it needs {module}, which is not installed: {advice}") from error
    except Exception as error:
        cause = first_line(error)
        raise ImportError(f"it needs {module}, whose import fails: {cause}") from error


def _check_gpus(config: DictConfig, settings: ImageRewardConfig) -> None:
    """Raise OptionError where training takes the GPUs that scorers ask for; Ray would wait for ever."""
    import ray
    import torch

    asked = sum(scorer.num_gpus * scorer.replicas for scorer in settings.scorers)
    if not asked or ray.is_initialized() or config.trainer.nnodes != 1:
        return
    given = OmegaConf.select(config, "ray_kwargs.ray_init.num_gpus")
    available = torch.cuda.device_count() if given is None else given
    free = available - config.trainer.n_gpus_per_node
    if asked > free:
        names = ", ".join(scorer.key("num_gpus") for scorer in settings.scorers if scorer.num_gpus)
        raise OptionError(
            names,
            asked,
            f"training takes {config.trainer.n_gpus_per_node} of {available} GPUs, so there are {max(free, 0)}",
        )


def _scorer(name: str, settings: Any) -> ScorerConfig:
    if not isinstance(settings, Mapping):
        raise OptionError(f"{SECTION}.scorers.{name}", settings, "write the scorer's settings, or null to leave it out")
    values = {key: value for key, value in settings.items() if key != "_target_"}
    _check_keys(f"{SECTION}.scorers.{name}", values, ScorerConfig, without=("name",))
    options = values.get("options")
    if options is not None and not isinstance(options, Mapping):
        raise OptionError(f"{SECTION}.scorers.{name}.options", options, "write names and values")
    return ScorerConfig(name=name, **values | {"options": dict(options or {})})


def _check_keys(section: str, values: Mapping[str, Any], owner: type, without: tuple[str, ...] = ()) -> None:
    try:
        check_keys(values, [entry.name for entry in fields(owner) if entry.name not in without])
    except OptionError as error:
        raise error.under(section) from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
