"""Samplers of masked diffusion models by name."""

from dataclasses import MISSING, fields
from typing import Any

from maskgrpo_plugin.diffusion.samplers.base import Sampler, SamplerOptionError, SamplerOutput
from maskgrpo_plugin.diffusion.samplers.blocks.sampler import SemiAutoregressiveSampler
from maskgrpo_plugin.diffusion.samplers.scheduled import EmergeSampler, MaskGITSampler

SAMPLERS: dict[str, type[Sampler]] = {
    "semi_autoregressive": SemiAutoregressiveSampler,
    "emerge": EmergeSampler,
    "maskgit": MaskGITSampler,
}


def build_sampler(name: str, **options: Any) -> Sampler:
    """Build a sampler.

    Args:
        name: `semi_autoregressive`, `emerge` or `maskgit`.
        **options: the sampler's options; see its class.

    Raises:
        SamplerOptionError: an unknown name or option, one that is missing, or a value that cannot work.
    """
    if name not in SAMPLERS:
        raise SamplerOptionError("name", name, f"allowed: {', '.join(SAMPLERS)}")
    known = [field.name for field in fields(SAMPLERS[name])]
    for option, value in options.items():
        if option not in known:
            raise SamplerOptionError(option, value, f"{name} has no such option; it has {', '.join(known)}")
    for field in fields(SAMPLERS[name]):
        if field.name not in options and field.default is MISSING:
            raise SamplerOptionError(field.name, None, f"{name} needs a value")
    return SAMPLERS[name](**options)


__all__ = [
    "SAMPLERS",
    "EmergeSampler",
    "MaskGITSampler",
    "Sampler",
    "SamplerOptionError",
    "SamplerOutput",
    "SemiAutoregressiveSampler",
    "build_sampler",
]
