"""Checks of the whole config on the driver, before Ray starts: wrong values end the run in seconds, named by key.

Hydra's callback `RunChecks`, which the plugin's configs name, checks a run before verl reads its config. For configs
that are composed otherwise the resolver does: verl builds `actor_rollout_ref.actor` on the driver, and the plugin's
configs hold `preflight: ${maskgrpo.preflight:}` there. Each check lives with its subject.
"""

import copy
import logging
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from maskgrpo_plugin import extensions
from maskgrpo_plugin.config import check_estimation
from maskgrpo_plugin.data.checks import check_files, check_rows
from maskgrpo_plugin.data.reward_checks import check_text_rows
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.checks import check_model
from maskgrpo_plugin.registry import Registered
from maskgrpo_plugin.rewards.images.config import check_image_reward_config
from maskgrpo_plugin.rewards.text.config import check_text_reward_config
from maskgrpo_plugin.schema import check_schema, resolved_section
from maskgrpo_plugin.trainer.checks import check_algorithm, check_names, check_trainer, check_unsupported
from maskgrpo_plugin.trainer.folders import check_folders
from maskgrpo_plugin.trainer.loss_checks import check_loss
from maskgrpo_plugin.workers.actor_checks import check_actor, check_batches
from maskgrpo_plugin.workers.checks import check_merge, check_ray, check_strategy, check_workers
from maskgrpo_plugin.workers.platform import check_device
from maskgrpo_plugin.workers.rollout.checks import check_rollout
from maskgrpo_plugin.workers.rollout.prompt_checks import check_prompts
from maskgrpo_plugin.workers.rollout.record_checks import check_record

logger = logging.getLogger(__name__)

RESOLVER = "maskgrpo.preflight"
BUILT = ("algorithm", "actor_rollout_ref.actor", "actor_rollout_ref.rollout")


class Check(NamedTuple):
    """One check of a whole config.

    Attributes:
        section: what it reads first, which is named where a value there has a type that nobody foresaw.
        function: raises OptionError for the first value that cannot work.
        of_diffusion: whether it is for masked diffusion models alone.
    """

    section: str
    function: Callable[[DictConfig], None]
    of_diffusion: bool = False


def check_sections(config: DictConfig) -> None:
    """Build the sections' dataclasses, as verl does later in its workers, for the checks that they make themselves.

    Raises:
        OptionError: the first section that cannot be built.
    """
    for path in BUILT:
        section = resolved_section(config, path, without=("preflight", "profiler"))
        try:
            instantiate(OmegaConf.create(section), _convert_="partial")
        except Exception as error:
            raise _of_section(path, section, error) from None


CHECKS: tuple[Check, ...] = (
    Check("extensions", extensions.read_config),
    Check("config", check_schema),
    Check("algorithm.adv_estimator", check_names),
    Check("data", check_files),
    Check("actor_rollout_ref.actor.ppo_mini_batch_size", check_batches),
    Check("trainer", check_trainer),
    Check("algorithm.estimation", check_estimation, of_diffusion=True),
    Check("algorithm", check_unsupported, of_diffusion=True),
    Check("algorithm", check_algorithm, of_diffusion=True),
    Check("actor_rollout_ref.actor.policy_loss", check_loss, of_diffusion=True),
    Check("actor_rollout_ref.actor", check_actor),
    Check("reward", check_workers),
    Check("actor_rollout_ref.model", check_model),
    Check("actor_rollout_ref.actor.strategy", check_strategy),
    Check("actor_rollout_ref.model.lora.merge", check_merge),
    Check("actor_rollout_ref.rollout", check_rollout),
    Check("actor_rollout_ref.rollout.calculate_log_probs", check_record, of_diffusion=True),
    Check("actor_rollout_ref", check_sections),
    Check("reward.image", check_image_reward_config),
    Check("reward", check_text_reward_config),
    Check("data.train_files", check_rows),
    Check("data.train_files", check_prompts),
    Check("data.train_files", check_text_rows),
    Check("ray_kwargs.ray_init", check_ray),
    Check("trainer.device", check_device),
    Check("trainer.default_local_dir", check_folders),
)


def preflight(config: DictConfig) -> bool:
    """Check a run's config.

    Args:
        config: the composed config of `verl.trainer.main_ppo`.

    Returns:
        True.

    Raises:
        OptionError: the first value that cannot work.
    """
    for check in CHECKS:
        try:
            if not check.of_diffusion or config.actor_rollout_ref.model.model_type == "masked_diffusion":
                check.function(config)
        except OptionError:
            raise
        except Exception as error:  # a wrong type that the schema lets through, or a file's content
            logger.debug("an unforeseen error in %s", check.function.__name__, exc_info=True)
            raise OptionError(check.section, _short(config, check.section), _cause(error)) from error
    return True


class RunChecks(Callback):
    """Hydra's callback (`hydra.callbacks`) that checks a run before verl reads its config.

    Attributes:
        passed: the config that passed last, as plain data; it is not checked again where verl builds its actor.
    """

    passed: Any = None

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called with the composed config of each run; it ends the process with one line where the run cannot work."""
        task = copy.deepcopy(config)
        with read_write(task), open_dict(task):
            task.pop("hydra", None)
        _check_or_exit(task)
        RunChecks.passed = _unresolved(task)


def _resolve(*, _root_: DictConfig) -> bool:
    """What `${maskgrpo.preflight:}` is: True, or the end of the process with one line on standard error."""
    if RunChecks.passed is not None:
        _or_exit(extensions.read_config, _root_)
        if RunChecks.passed == _unresolved(_root_):
            return True
    return _check_or_exit(_root_)


def _check_or_exit(config: DictConfig) -> bool:
    _or_exit(preflight, config)
    return True


def _or_exit(check: Callable[[DictConfig], Any], config: DictConfig) -> None:
    try:
        check(config)
    except OptionError as error:
        line = " ".join(str(error).split())
        sys.stderr.write(f"maskgrpo_plugin: {line}\n")
        raise SystemExit(2) from None


def _unresolved(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False)


def _of_section(path: str, values: Any, error: BaseException) -> OptionError:
    """What a section's dataclass raised, under the key that its message speaks of, else under the section's."""
    inner: BaseException = error
    while inner.__cause__ is not None and not isinstance(inner, OptionError):
        inner = inner.__cause__
    if isinstance(inner, OptionError):
        return inner
    message = _cause(inner)
    named = [key for key in values if isinstance(key, str) and len(key) > 3 and key in message]
    if not named:
        return OptionError(path, "…", message)
    key = max(named, key=len)
    return OptionError(f"{path}.{key}", values[key], message)


def _short(config: DictConfig, path: str) -> Any:
    """The value of a key for a message; a section's is not written out."""
    try:
        value = OmegaConf.select(config, path, default=None)
    except Exception:
        return "…"
    return "…" if OmegaConf.is_config(value) else value


def _cause(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


OmegaConf.register_new_resolver(RESOLVER, _resolve, replace=True)

REGISTERS = (Registered(f"resolver {RESOLVER}", lambda: OmegaConf.has_resolver(RESOLVER)),)
