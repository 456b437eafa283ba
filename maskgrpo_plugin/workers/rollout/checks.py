"""Checks of the rollout section on the driver before Ray starts: servers, sampler, old keys of options."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from maskgrpo_plugin.config import SamplerSettings
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.workers.rollout import ROLLOUTS
from maskgrpo_plugin.workers.rollout.model_weights import serves_adapter
from maskgrpo_plugin.workers.rollout.settings import check_rollout_settings

logger = logging.getLogger(__name__)

ROLLOUT = "actor_rollout_ref.rollout"
SAMPLER = f"{ROLLOUT}.sampler"
BY_RUN = {"response_length": "data.max_response_length", "temperature": f"{ROLLOUT}.temperature"}
AGENT_LOOP = "maskgrpo_single_turn"


def check_rollout(config: DictConfig) -> None:
    """Check the rollout section of the plugin's rollouts.

    Raises:
        OptionError: the first value that cannot work.
    """
    rollout = config.actor_rollout_ref.rollout
    if rollout.name not in ROLLOUTS:
        return
    ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes
    for key in ("tensor_model_parallel_size", "data_parallel_size", "pipeline_model_parallel_size"):
        if rollout[key] != 1:
            raise OptionError(f"{ROLLOUT}.{key}", rollout[key], f"use 1: each of the {ranks} ranks has its own server")
    if serves_adapter(config.actor_rollout_ref.model) and rollout.layered_summon and rollout.load_format == "dummy":
        raise OptionError(f"{ROLLOUT}.layered_summon", True, "it needs rollout.load_format=auto: it sends no base")
    check_rollout_settings(config)
    if rollout.agent.default_agent_loop != AGENT_LOOP:
        key = f"{ROLLOUT}.agent.default_agent_loop"
        raise OptionError(key, rollout.agent.default_agent_loop, f"the plugin's rollouts are seeded by {AGENT_LOOP}")
    if rollout.name == "masked_diffusion":
        check_sampler(config)


def check_sampler(config: DictConfig) -> None:
    """Check `rollout.sampler` by building it as training and validation will; old keys are named in a warning.

    Raises:
        OptionError: the first value that cannot work.
    """
    rollout = config.actor_rollout_ref.rollout
    settings = sampler_settings(rollout.sampler)
    _check_old_keys(settings)
    for temperature in (rollout.temperature, rollout.val_kwargs.temperature):
        try:
            sampler = settings.build(
                response_length=rollout.response_length,
                temperature=temperature,
                stop_token_ids=(),
                record=rollout.calculate_log_probs,
            )
        except OptionError as error:
            raise full_key(error, settings.options) from None
        except (TypeError, AttributeError) as error:
            raise OptionError(f"{SAMPLER}.options", settings.options, f"a value of another type: {error}") from None
        if rollout.compile and not sampler.takes_compiled_models:
            raise OptionError(f"{ROLLOUT}.compile", True, f"needs {SAMPLER}.options.cache=none")


def sampler_settings(section: DictConfig) -> SamplerSettings:
    """The section `rollout.sampler` as its dataclass.

    Raises:
        OptionError: a key that it does not have.
    """
    values = {str(key): section[key] for key in section if key != "_target_"}
    known = [name for name in SamplerSettings.__dataclass_fields__ if not name.startswith("_")]
    for key, value in values.items():
        if key not in known:
            raise OptionError(f"{SAMPLER}.{key}", value, "allowed: name, options")
    options = OmegaConf.to_container(section.get("options") or OmegaConf.create({}), resolve=True)
    return SamplerSettings(**(values | {"options": options}))


def full_key(error: OptionError, options: Mapping[str, Any]) -> OptionError:
    """The error of a sampler with these `options`, by the full key of the run's config."""
    if error.key == "name":
        return error.under(SAMPLER)
    if error.key in BY_RUN and error.key not in options:
        return OptionError(BY_RUN[error.key], error.value, error.allowed)
    return error.under(f"{SAMPLER}.options")


def _check_old_keys(settings: SamplerSettings) -> None:
    """Warn of old keys; OptionError where the command line sets an option by both keys to two values."""
    given = _command_line()
    for key, value in settings.old_options().items():
        new = f"{SAMPLER}.options.{key}"
        if {f"{SAMPLER}.{key}", new} <= given and settings.options.get(key) != value:
            raise OptionError(
                f"{SAMPLER}.{key}", value, f"{new}={settings.options.get(key)!r} says otherwise; drop one"
            )
        logger.warning("%s.%s=%r: the key is now %s; the old one goes with the next release", SAMPLER, key, value, new)


def _command_line() -> set[str]:
    """The keys that the command line sets; none where Hydra's command line was not used."""
    overrides: Sequence[str] = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    return {override.partition("=")[0].lstrip("+") for override in overrides}
