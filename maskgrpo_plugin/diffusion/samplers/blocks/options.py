"""The options of samplers that decode block after block, and how they draw a token and say how certain it is."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from maskgrpo_plugin.diffusion.samplers.blocks.cache import CACHES
from maskgrpo_plugin.diffusion.samplers.blocks.parallel import RULES
from maskgrpo_plugin.diffusion.samplers.blockwise import BlockwiseSampler
from maskgrpo_plugin.diffusion.samplers.choice import choose_tokens
from maskgrpo_plugin.diffusion.samplers.noise import Generators
from maskgrpo_plugin.diffusion.samplers.options import number, number_above, one_of, option
from maskgrpo_plugin.errors import OptionError, check_choice


def _rule(key: str, value: Any) -> None:
    check_choice(key, value, ("none", *RULES))


@dataclass(frozen=True, kw_only=True)
class BlockSampler(BlockwiseSampler):
    """Options of decoding block after block where attention is in both directions; see `BlockwiseSampler` and `Sampler`
    for the others.

    Attributes:
        steps: steps in total; each block has steps / blocks of them. 128 as published (arXiv 2502.09992).
        block_length: tokens per block; None: one block.
        temperature: tokens are drawn from softmax(logits / temperature); 0 takes the most probable token.
        cfg_scale: w in un + (1 + w)(cond − un), un without the prompt; 0 for no guidance.
        cache: `none`; or what stays as it was at the start of the block (approximate, arXiv 2505.22618): keys and
            values of what lies before the block (`prefix`), or of all but the block (`dual`).
        parallel: `none` reveals the fixed number of tokens per step; the others reveal more where the model is certain
            (approximate, needs `low_confidence`): a rule of `parallel.RULES`.
        low_threshold: of `parallel=hierarchical`, the probability that a run's best token needs; None: threshold / 2.
        factor: of `parallel=factor`, above 0.

    Raises:
        OptionError: a value that cannot work.
    """

    steps: int = option(number(1, whole=True), 128)
    block_length: int | None = option(number(1, whole=True), None)
    cache: str = option(one_of(*CACHES), "none")
    parallel: str = option(_rule, "none")
    low_threshold: float | None = option(number(0, 1), None)
    factor: float = option(number_above(0), 1.0)

    def __post_init__(self):
        super().__post_init__()
        if self.record and self.cache != "none":
            raise OptionError("cache", self.cache, "the sampler's record needs none: these caches are approximate")
        if self.record and self.parallel == "credit":
            allowed = "the sampler's record needs another rule: this one draws from other logits than the model's"
            raise OptionError("parallel", self.parallel, allowed)
        if self.low_threshold is not None and self.low_threshold > self.threshold:
            raise OptionError("low_threshold", self.low_threshold, f"allowed: 0 to the threshold {self.threshold}")
        block = self.block_length or self.response_length
        if self.response_length % block:
            raise OptionError("block_length", block, f"must divide the response length {self.response_length}")
        blocks = self.response_length // block
        if self.steps < blocks:
            raise OptionError("steps", self.steps, f"there are {blocks} blocks; each needs a step or more")
        if self.steps % blocks:
            raise OptionError("steps", self.steps, f"must be a multiple of the {blocks} blocks")
        if self.steps // blocks > block:
            raise OptionError("steps", self.steps, f"a block of {block} tokens has at most {block} steps")

    def choose(self, logits: Tensor, counts: list[int], generator: Generators) -> tuple[Tensor, Tensor]:
        """Draw a token for each masked position, and say how certain it is.

        Args:
            logits: (N, K, V) float32 or float64, −∞ at tokens that must not be emitted.
            counts: N numbers of positions; what lies beyond them in a row is arbitrary.
            generator: see `uniform_table`.

        Returns:
            Tokens (N, K), and scores (N, K) whose highest are revealed first.
        """
        return choose_tokens(
            logits,
            counts,
            generator,
            temperature=self.temperature,
            ordering=self.ordering,
            top_k=self.top_k,
            top_p=self.top_p,
        )
