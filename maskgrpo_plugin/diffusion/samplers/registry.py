"""Samplers by name: `register_sampler` adds one, `build_sampler` builds one."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from maskgrpo_plugin.diffusion.samplers.base import Sampler
from maskgrpo_plugin.errors import OptionError, check_choice
from maskgrpo_plugin.registry import ClassRegistry

SAMPLERS: ClassRegistry[Sampler] = ClassRegistry("sampler")

register_sampler = SAMPLERS.register
"""Class decorator: make a sampler known by a name, for `build_sampler` and `rollout.sampler.name`."""


def get_sampler(name: str) -> type[Sampler]:
    """The class of a sampler.

    Raises:
        OptionError: of the key `name`: there is no such sampler.
    """
    check_choice("name", name, tuple(SAMPLERS))
    return SAMPLERS[name]


def build_sampler(name: str, **options: Any) -> Sampler:
    """Build a sampler.

    Args:
        name: `semi_autoregressive`, `block_causal`, `emerge`, `maskgit`, or one that `register_sampler` added.
        **options: the sampler's options; see its class.

    Raises:
        OptionError: an unknown name or option, one that is missing, or a value that cannot work.
    """
    get_sampler(name)
    return SAMPLERS.build(name, **options)


def check_attention(name: str, block_length: int | None) -> None:
    """Check that a sampler is for a checkpoint's attention.

    Args:
        name: of the sampler.
        block_length: of a checkpoint that attends block by block; None: in both directions.

    Raises:
        OptionError: of the key `name`: it is for the other.
    """
    if get_sampler(name).block_causal == (block_length is not None):
        return
    fitting = [other for other in SAMPLERS if SAMPLERS[other].block_causal == (block_length is not None)]
    how = "in both directions" if block_length is None else f"block by block ({block_length} tokens)"
    raise OptionError("name", name, f"the checkpoint attends {how}; allowed are {', '.join(fitting)}")


def keeps_record(name: str) -> bool:
    """Whether a sampler can be asked for a `TokenRecord`: it has the option `record`."""
    return any(each.name == "record" for each in fields(get_sampler(name)))


def option_names(name: str) -> tuple[str, ...]:
    """What `rollout.sampler.options` may hold for a sampler: its options but those that a run sets elsewhere."""
    return tuple(each.name for each in fields(get_sampler(name)) if not each.metadata.get("by_run"))


def build_for_run(name: str, options: Mapping[str, Any], **by_run: Any) -> Sampler:
    """The sampler of a run.

    Args:
        name: see `build_sampler`.
        options: as `rollout.sampler.options` holds them.
        **by_run: what the run sets elsewhere; what the sampler does not declare is left out.

    Raises:
        OptionError: see `build_sampler`; also an option that is not for `rollout.sampler.options`.
    """
    allowed = option_names(name)
    for key, value in options.items():
        if key not in allowed:
            raise OptionError(key, value, f"{name} has no such option; it has {', '.join(allowed)}")
    declared = {each.name for each in fields(get_sampler(name))}
    return build_sampler(name, **options, **{key: value for key, value in by_run.items() if key in declared})
