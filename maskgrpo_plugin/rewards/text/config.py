"""The keys of the section `reward` that text rewards read, and the check of them on the driver."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.rewards.sections import plain
from maskgrpo_plugin.rewards.text.registry import TASKS, check_weights

SECTION = "reward"
TEXT_REWARD_MANAGER = "maskgrpo_text"
SECRETS = {"reward.sandbox.api_key": "E2B_API_KEY"}


@dataclass(frozen=True)
class TextRewardConfig:
    """What the section `reward` says of text rewards.

    Attributes:
        weights: factors of reward components, {task: {component: factor}}.
        timeout_s: seconds that scoring one sample may take, more than 0.
        settings: options of the tasks' scorers, {task: {option: value}}, as each task reads them from the section
            (`code`: `reward.sandbox`).

    Raises:
        OptionError: a value that cannot work.
    """

    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    timeout_s: float = 300.0
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seconds = self.timeout_s
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise OptionError(f"{SECTION}.timeout_s", seconds, "allowed: seconds, more than 0")
        for task, weights in self.weights.items():
            _check_task_weights(task, weights)

    @classmethod
    def from_config(cls, config: Any) -> "TextRewardConfig":
        """Read a run's config, or None for the defaults.

        Raises:
            OptionError: a key or a value that cannot work.
        """
        reward = (config.get("reward") if config is not None else None) or {}
        given = {key: plain(reward.get(key)) for key in ("weights", "timeout_s")}
        return cls(
            **{key: value for key, value in given.items() if value is not None},
            settings={name: _settings(name, reward) for name, task in TASKS.items() if task.settings is not None},
        )


def check_text_reward_config(config: DictConfig) -> None:
    """Check the text rewards of a run on the driver, before anything starts; nothing where the run has none.

    Args:
        config: the composed config of `verl.trainer.main_ppo`.

    Raises:
        OptionError: the first key that cannot work, with its value and what is allowed.
    """
    _refuse_secrets(config)
    if config.reward.reward_manager.name == TEXT_REWARD_MANAGER:
        TextRewardConfig.from_config(config)


def _refuse_secrets(config: DictConfig) -> None:
    """Raise OptionError, which does not repeat it, where the config holds a key: verl prints the whole config with all
    its interpolations resolved, and hands it to the loggers.
    """
    for key, variable in SECRETS.items():
        if OmegaConf.select(config, key):
            raise OptionError(
                key,
                "…",
                f"the config is printed into the log; set the environment variable {variable} where Ray is started",
            )


def _settings(name: str, reward: Mapping[str, Any]) -> Mapping[str, Any]:
    read = TASKS[name].settings
    assert read is not None
    try:
        return read(reward)
    except OptionError as error:
        raise error.under(SECTION) from error


def _check_task_weights(task: str, weights: Any) -> None:
    key = f"{SECTION}.weights.{task}"
    if task not in TASKS:
        raise OptionError(key, weights, f"unknown task; available: {', '.join(TASKS.names())}")
    if not isinstance(weights, Mapping):
        raise OptionError(key, weights, "allowed: component: factor")
    try:
        check_weights(task, weights)
    except OptionError as error:
        raise error.under(f"{SECTION}.weights") from error
