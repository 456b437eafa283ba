"""Keys and types of a run's config, by what verl ships and what the sections' dataclasses declare.

verl takes keys that it does not know (`+actor_rollout_ref.actor.nope=1`), and values of any type; both come to light in
a worker, or never. Here a key is known where verl's shipped config has it or the section's dataclass (its `_target_`)
declares it; a value fits by the dataclass's annotation, else by the type of what verl ships.
"""

import functools
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from importlib.resources import files
from typing import Any, Union, get_args, get_origin

import yaml
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from maskgrpo_plugin.errors import OptionError, first_line, nearest

SHIPPED = "_generated_ppo_trainer.yaml"
ENGINE = "dp"  # FSDP, whose config is the shipped one
LEGACY = {  # sections that verl ships empty and its trainer does not read any more
    "custom_reward_function": "reward.custom_reward_function",
    "reward_model": "reward",
    "sandbox_fusion": "reward.sandbox_fusion",
}
UNREAD = ("critic", "distillation", "reward.reward_model.rollout")  # by runs without critic, teacher or reward model
OPEN = (  # keys of the user's own choice
    "actor_rollout_ref.actor.policy_loss.options",
    "actor_rollout_ref.model.override_config",
    "actor_rollout_ref.rollout.custom",
    "actor_rollout_ref.rollout.sampler.options",
    "algorithm.estimation.options",
    "data.apply_chat_template_kwargs",
    "data.mm_processor_kwargs",
    "extensions",
    "hydra",
    "ray_kwargs.ray_init.runtime_env",
    "reward.custom_reward_function.reward_kwargs",
    "reward.image",
    "reward.reward_kwargs",
    "reward.sandbox",
    "reward.weights",
    "trainer.v1.sampler.sampler_kwargs",
)
FURTHER = {  # keys that verl or the plugin reads and neither ships nor declares
    "": ("extensions", "hydra"),
    "data": ("cache_dir", "need_tools_kwargs", "filter_prompts", "chat_template_func", "sampler", "datagen"),
    "data.apply_chat_template_kwargs": (),
    "reward": ("timeout_s", "weights", "image", "sandbox", "reward_kwargs", "timeout"),
    "reward.custom_reward_function": ("reward_kwargs",),
    "trainer": ("remove_previous_ckpt_in_save", "dump_rows", "dump_freq"),
}
FRACTIONAL = ("num_warmup_batches", "esi_redundant_time", "ray_wait_register_center_timeout", "nccl_timeout")
ANY_SCALAR = ("trainer.project_name", "trainer.experiment_name")
MAY_BE_NULL = ("data.filter_overlong_prompts_workers", "data.tool_config_path", "data.function_tool_path")


def check_schema(config: DictConfig) -> None:
    """Check the keys of a whole config, and the types of its values.

    Raises:
        OptionError: an interpolation that leads nowhere, a key that does not exist (with the nearest that does), one
            that was taken out, or a value of another type.
    """
    values: Any = OmegaConf.to_container(config, resolve=False)
    if values.get("model_engine") != ENGINE:
        raise OptionError("model_engine", values.get("model_engine"), f"use {ENGINE}: the plugin's workers are FSDP's")
    shipped = shipped_config()
    known = (*shipped, *FURTHER[""])
    for key, value in values.items():
        near = None if key in known else nearest(str(key), known)
        if near:
            raise OptionError(str(key), value, f"no such section; did you mean {near}?")
    schema = _Schema(config)
    for key, default in shipped.items():
        if key not in values:
            raise OptionError(key, None, "the section was taken out of the config; it is needed")
        schema.check_value(key, values[key], default, None)
        if key in LEGACY:
            _check_unset(key, values[key], LEGACY[key])


def _check_unset(path: str, values: Any, moved_to: str) -> None:
    """Raise OptionError for the first value that is set in a section that nothing reads."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            _check_unset(f"{path}.{key}", value, moved_to)
    elif values is not None:
        raise OptionError(path, values, f"verl reads it no more; it moved to {moved_to}")


def resolved_section(config: DictConfig, path: str, without: Iterable[str] = ()) -> dict[str, Any]:
    """A section of a config as plain data, its interpolations resolved.

    Args:
        config: the whole config.
        path: of the section.
        without: keys of the section that are left out.

    Raises:
        OptionError: an interpolation that leads nowhere.
    """
    section = OmegaConf.select(config, path)
    found = {}
    for key in section:
        if key not in without:
            found[str(key)] = resolve(config, f"{path}.{key}")
    return found


def resolve(config: DictConfig, key: str) -> Any:
    """The value of a key as plain data, its interpolations resolved; `???` where it is missing.

    Raises:
        OptionError: an interpolation that leads nowhere.
    """
    parent = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
    name = key.rpartition(".")[2]
    if OmegaConf.is_missing(parent, name):
        return "???"
    try:
        value = parent[name]
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raw = OmegaConf.to_container(parent, resolve=False)
        shown = raw.get(name) if isinstance(raw, dict) else "${…}"
        raise OptionError(key, shown, first_line(error)) from None


@functools.cache
def shipped_config() -> dict[str, Any]:
    """verl's config of a run with FSDP as it ships it, in which interpolations are texts."""
    text = files("verl.trainer.config").joinpath(SHIPPED).read_text()
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


class _Schema:
    """Checks the values of one config, which it is given unresolved: what verl ships unchanged is not resolved."""

    def __init__(self, config: DictConfig):
        self.config = config

    def check_value(self, path: str, value: Any, default: Any, hint: Any) -> None:
        """Check a value and what is in it; `hint` is the annotation in the dataclass that holds it, None for none."""
        if path in UNREAD:
            return
        if _is_interpolation(value) or (isinstance(value, list) and any(_is_interpolation(part) for part in value)):
            if value == default:
                return
            value = resolve(self.config, path)
        if isinstance(value, Mapping):
            if not _may_be_section(default, hint):
                raise OptionError(path, dict(value), f"allowed: {_phrase(default, hint)}, not a section")
            self._check_section(path, value, default if isinstance(default, Mapping) else {}, hint)
        else:
            problem = _misfit(path, value, default, hint)
            if problem:
                raise OptionError(path, value, f"allowed: {problem}")

    def _check_section(self, path: str, values: Mapping[str, Any], default: Mapping[str, Any], hint: Any) -> None:
        if path in OPEN:
            return
        owner = _owner(path, values) or _dataclass_of(hint)
        if not default and owner is None:  # an empty section that the user fills
            return
        hints = _hints(owner) if owner is not None else {}
        known = dict.fromkeys([*default, *hints, *FURTHER.get(path, ()), *_further(path)])
        for key, value in values.items():
            name = f"{path}.{key}"
            if key in ("_target_", "preflight"):
                continue
            if key not in known:
                near = nearest(str(key), known)
                raise OptionError(name, value, f"no such key; {f'did you mean {near}?' if near else _listed(known)}")
            if key in default or key in hints:
                self.check_value(name, value, default.get(key), hints.get(key))
        for key in default:
            if key not in values and key != "_target_":
                raise OptionError(f"{path}.{key}", None, "the key was taken out of the config; it is needed")


def _dataclass_of(hint: Any) -> type | None:
    kinds = _kinds(hint) if hint is not None else ()
    return next((kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)), None)


def _further(path: str) -> Iterable[str]:
    """Keys that depend on what is registered: settings of a user's own tasks, `ray.init`'s arguments."""
    if path == "reward":
        from maskgrpo_plugin.rewards.text.registry import TASKS

        return TASKS.names()
    if path == "trainer.v1":
        from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

        return TRAINER_REGISTRY
    if path.startswith("trainer.v1."):
        return ("poll_interval_s", "num_warmup_batches", "parameter_sync_step")
    if path == "ray_kwargs.ray_init":
        import inspect

        import ray

        return inspect.signature(ray.init).parameters
    return ()


def _owner(path: str, values: Mapping[str, Any]) -> type | None:
    """The dataclass of a section, by its `_target_`."""
    target = values.get("_target_")
    if target is None:
        return None
    try:
        found = get_class(str(target))
    except Exception as error:
        raise OptionError(f"{path}._target_", target, f"it cannot be imported: {first_line(error)}") from None
    return found if isinstance(found, type) and is_dataclass(found) else None


@functools.cache
def _hints(owner: type) -> dict[str, Any]:
    """Annotations of a dataclass's fields."""
    annotations = typing.get_type_hints(owner)
    return {each.name: annotations[each.name] for each in fields(owner) if not each.name.startswith("_")}


def _may_be_section(default: Any, hint: Any) -> bool:
    if hint is not None:
        return hint is Any or any(kind is Any or kind is dict or is_dataclass(kind) for kind in _kinds(hint))
    return default is None or isinstance(default, Mapping) or _is_interpolation(default)


def _misfit(path: str, value: Any, default: Any, hint: Any) -> str | None:
    """What would fit in place of a value that is no section, or None where it does fit."""
    if isinstance(value, str) and value == "???":
        return None
    if hint is not None:
        return None if any(_fits(value, kind) for kind in _kinds(hint)) else _phrase(default, hint)
    if _is_interpolation(default):
        default = _fallback(default)
    if default is None or (path in ANY_SCALAR and isinstance(value, str | int | float)):
        return None
    if value is None:
        return None if path in MAY_BE_NULL else _phrase(default, hint)
    return None if any(_fits(value, kind) for kind in _kinds_of_default(path, default)) else _phrase(default, hint)


def _kinds_of_default(path: str, default: Any) -> tuple[Any, ...]:
    if isinstance(default, list) or path in ("data.train_files", "data.val_files"):
        return (list, str)
    if isinstance(default, int) and not isinstance(default, bool) and path.rpartition(".")[2] in FRACTIONAL:
        return (float,)
    return (dict if isinstance(default, Mapping) else type(default),)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The plain types of an annotation: `list[str] | None` gives list and NoneType."""
    if hint is Any:
        return (Any,)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return tuple(kind for part in get_args(hint) for kind in _kinds(part))
    if origin is typing.Literal:
        return tuple(type(choice) for choice in get_args(hint))
    return (origin or hint,)


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any or kind is object:
        return True
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str)
    if kind in (list, tuple):
        return isinstance(value, list | tuple)
    if kind is type(None):
        return value is None
    if kind is dict or is_dataclass(kind):
        return isinstance(value, Mapping)
    return True


_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    tuple: "a list",
}


def _phrase(default: Any, hint: Any) -> str:
    kinds = _kinds(hint) if hint is not None else (dict if isinstance(default, Mapping) else type(default),)
    names = [_NAMES.get(kind, "null" if kind is type(None) else "a section") for kind in kinds]
    return " or ".join(dict.fromkeys(names))


def _is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _fallback(interpolation: str) -> Any:
    """The literal that `${oc.select:KEY,LITERAL}` falls back to, where it is true, false or a number; else None."""
    found = re.search(r",\s*(true|false|[0-9.]+)\s*\}$", interpolation, re.IGNORECASE)
    return yaml.safe_load(found[1]) if found else None


def _listed(known: Iterable[str]) -> str:
    return f"there are {', '.join(key for key in known if key != '_target_')}"
