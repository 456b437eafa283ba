"""Samplers of masked diffusion models, one file each (blocks/ for those that decode block after block), by name."""

from maskgrpo_plugin.diffusion.samplers.base import Sampler, SamplerOutput
from maskgrpo_plugin.diffusion.samplers.block_causal.sampler import BlockCausalSampler
from maskgrpo_plugin.diffusion.samplers.blocks.sampler import SemiAutoregressiveSampler
from maskgrpo_plugin.diffusion.samplers.emerge import EmergeSampler
from maskgrpo_plugin.diffusion.samplers.maskgit import MaskGITSampler
from maskgrpo_plugin.diffusion.samplers.options import option
from maskgrpo_plugin.diffusion.samplers.registry import (
    SAMPLERS,
    build_for_run,
    build_sampler,
    check_attention,
    get_sampler,
    keeps_record,
    option_names,
    register_sampler,
)

__all__ = [
    "SAMPLERS",
    "BlockCausalSampler",
    "EmergeSampler",
    "MaskGITSampler",
    "Sampler",
    "SamplerOutput",
    "SemiAutoregressiveSampler",
    "build_for_run",
    "build_sampler",
    "check_attention",
    "get_sampler",
    "keeps_record",
    "option",
    "option_names",
    "register_sampler",
]
