"""The options of block-causal decoding."""

from dataclasses import dataclass
from typing import Any, ClassVar

from maskgrpo_plugin.diffusion.samplers.blockwise import BlockwiseSampler
from maskgrpo_plugin.diffusion.samplers.choice import ORDERINGS, SEQUENTIAL
from maskgrpo_plugin.diffusion.samplers.options import number, one_of, option
from maskgrpo_plugin.errors import OptionError


def _none(key: str, value: Any) -> None:
    raise OptionError(key, value, "block_causal has steps_per_block")


@dataclass(frozen=True, kw_only=True)
class BlockCausalOptions(BlockwiseSampler):
    """Options of decoding a block-causal model; see `BlockwiseSampler` and `Sampler` for the others.

    Attributes:
        steps: None: steps are counted by block.
        steps_per_block: steps of a whole block; None: one token a step.
        block_length: tokens per block; None: the model's.
        blocks_from: `row`: blocks count from the row's first token, prompt included, as in training; `response`: a
            response begins a block, and the prompt's first block is short (dLLM's BD3LMSampler). Runs take `row` alone.
        ordering: which tokens are revealed first, see `BlockwiseSampler`; or `sequential`, from left to right.
        quota: how many tokens each step reveals, see `quotas`; `even` shares out a whole block, also where fewer are
            masked.
        temperature: tokens are drawn from softmax(logits / temperature); 0 takes the most probable token. Confidence is
            that of the same softmax, over all tokens (SDAR).
        cfg_scale: w in un + (1 + w)(cond − un), un with the prompt masked; 0 for no guidance.
        parallel: `threshold` is SDAR's low_confidence_dynamic, and LLaDA2's rule.
        sub_block_length: decodes the block in parts of so many tokens, left to right (Fast-dLLM v2); None: whole.
        cache: `exact` keeps the keys and values of finished blocks, which nothing changes; `none` computes all again.

    Raises:
        OptionError: a value that cannot work.
    """

    block_causal: ClassVar[bool] = True

    steps: None = option(_none, None, by_run=True)  # type: ignore[assignment]
    steps_per_block: int | None = option(number(1, whole=True), None)
    block_length: int | None = option(number(1, whole=True), None)
    blocks_from: str = option(one_of("row", "response"), "row")
    ordering: str = option(one_of(*ORDERINGS, SEQUENTIAL), "low_confidence")
    sub_block_length: int | None = option(number(1, whole=True), None)
    cache: str = option(one_of("exact", "none"), "exact")

    def __post_init__(self):
        super().__post_init__()
        if self.block_length is not None:
            self.check_block(self.block_length)

    def check_block(self, block_length: int) -> None:
        """Raise OptionError where the steps or the sub-blocks do not fit blocks of so many tokens."""
        if self.steps_per_block is not None and self.steps_per_block > block_length:
            allowed = f"a block of {block_length} tokens has at most {block_length} steps"
            raise OptionError("steps_per_block", self.steps_per_block, allowed)
        if self.sub_block_length is not None and block_length % self.sub_block_length:
            raise OptionError("sub_block_length", self.sub_block_length, f"must divide the blocks of {block_length}")
