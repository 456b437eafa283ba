"""The block-causal sampler of block-diffusion models (SDAR, LLaDA2, A2D, Fast-dLLM v2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.samplers.base import OnStep, Sampler, SamplerOutput, make_canvas
from maskgrpo_plugin.diffusion.samplers.block_causal.decoder import BlockCausalDecoder
from maskgrpo_plugin.diffusion.samplers.blocks.quotas import QUOTAS
from maskgrpo_plugin.diffusion.samplers.choice import ORDERINGS, SEQUENTIAL
from maskgrpo_plugin.diffusion.samplers.noise import Generators, check_generators
from maskgrpo_plugin.diffusion.samplers.options import flag, number, number_above, one_of, option, token_ids
from maskgrpo_plugin.diffusion.samplers.registry import register_sampler
from maskgrpo_plugin.errors import OptionError


@register_sampler("block_causal")
@dataclass(frozen=True, kw_only=True)
class BlockCausalSampler(Sampler):
    """Reveal the tokens of a block over a few steps, block after block, each seeing those before it (BD3-LM, arXiv
    2503.09573; SDAR, arXiv 2510.06303).

    Blocks count from the row's first token, prompt included, so that the first block of a response may begin with the
    prompt's last tokens; the last one ends with the response.

    Attributes:
        steps_per_block: steps of a whole block; None: one token a step.
        block_length: tokens per block; None: the model's.
        ordering: which tokens are revealed first, see `BlockSampler`; or `sequential`, from left to right.
        quota: how many tokens each step reveals, see `quotas`; `even` shares out a whole block, also where fewer are
            masked.
        temperature: tokens are drawn from softmax(logits / temperature); 0 takes the most probable token. Confidence is
            that of the same softmax, over all tokens (SDAR).
        top_k, top_p: of the tokens that are drawn: the k most probable (0: all), the fewest that reach p together.
        cfg_scale: w in un + (1 + w)(cond − un), un with the prompt masked; 0 for no guidance.
        parallel: `none`; or `threshold`: each step also reveals the tokens of at least the probability `threshold`
            (SDAR's low_confidence_dynamic, LLaDA2), which needs `low_confidence`.
        threshold: of `parallel`, a probability in (0, 1].
        sub_block_length: decodes the block in parts of so many tokens, left to right (Fast-dLLM v2); None: whole.
        early_stop: whether a row that holds a stop token once a block is done takes no further blocks.
        stop_token_ids: tokens that end a response.
        fill_token_id: fills the blocks that were not decoded; None: the first stop token.
        cache: `exact` keeps the keys and values of finished blocks, which nothing changes; `none` computes all again.

    Where the model's logits stand before their token (Fast-dLLM v2), the first token of a block is revealed by itself,
    from the last logits of the block before, as published.

    Raises:
        OptionError: a value that cannot work.
    """

    modalities: ClassVar[tuple[str, ...]] = ("text",)
    block_causal: ClassVar[bool] = True

    steps_per_block: int | None = option(number(1, whole=True), None)
    block_length: int | None = option(number(1, whole=True), None)
    ordering: str = option(one_of(*ORDERINGS, SEQUENTIAL), "low_confidence")
    quota: str = option(one_of(*QUOTAS), "even")
    top_k: int = option(number(0, whole=True), 0)
    top_p: float = option(number_above(0, 1), 1.0)
    parallel: str = option(one_of("none", "threshold"), "none")
    threshold: float = option(number_above(0, 1), 0.9)
    sub_block_length: int | None = option(number(1, whole=True), None)
    early_stop: bool = option(flag, True)
    stop_token_ids: tuple[int, ...] = option(token_ids, (), by_run=True)
    fill_token_id: int | None = option(number(0, whole=True), None)
    cache: str = option(one_of("exact", "none"), "exact")

    def __post_init__(self):
        super().__post_init__()
        if self.parallel != "none" and self.ordering != "low_confidence":
            raise OptionError("parallel", self.parallel, "needs ordering low_confidence")
        if self.fill_token is not None and self.fill_token in self.forbidden_token_ids:
            raise OptionError("fill_token_id", self.fill_token, "is one of forbidden_token_ids")
        if self.block_length is not None:
            self.check_block(self.block_length)

    def check_block(self, block_length: int) -> None:
        """Raise OptionError where the steps or the sub-blocks do not fit blocks of so many tokens."""
        if self.steps_per_block is not None and self.steps_per_block > block_length:
            allowed = f"a block of {block_length} tokens has at most {block_length} steps"
            raise OptionError("steps_per_block", self.steps_per_block, allowed)
        if self.sub_block_length is not None and block_length % self.sub_block_length:
            raise OptionError("sub_block_length", self.sub_block_length, f"must divide the blocks of {block_length}")

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens after whose block a row takes no further blocks."""
        return self.stop_token_ids if self.early_stop else ()

    @property
    def fill_token(self) -> int | None:
        """The token that fills blocks after a stop token; None where nothing stops early."""
        if not self.stops:
            return None
        return self.stops[0] if self.fill_token_id is None else self.fill_token_id

    @property
    def draws(self) -> bool:
        """Whether two samples of a prompt can differ."""
        return self.temperature > 0 or self.ordering == "random"

    @property
    def takes_compiled_models(self) -> bool:
        """Layers compiled for any shape take no cache."""
        return self.cache == "none"

    @torch.no_grad()
    def generate(
        self,
        model: Callable[..., Any],
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        mask_token_id: int,
        generator: Generators = None,
        on_step: OnStep | None = None,
    ) -> SamplerOutput:
        """Sample a batch; see `Sampler.generate`. At temperature 0 it equals the published samplers token for token.

        Raises:
            OptionError: the model attends in both directions, or the options do not fit its blocks.
            ValueError: the number of generators is not the batch size.
        """
        check_generators(generator, input_ids.shape[0])
        canvas = make_canvas(input_ids, attention_mask, self.response_length, mask_token_id)
        rows, length = canvas.tokens.shape
        own = generator if isinstance(generator, Sequence) else [generator] * rows
        decoder = BlockCausalDecoder(
            self, model, mask_token_id=mask_token_id, response_length=length - canvas.start, on_step=on_step
        )
        decoder.join(canvas.tokens, canvas.attention_mask, own)
        while decoder.running:
            decoder.decode_block()
        return decoder.output()

    def decoder(self, model: Callable[..., Any], *, mask_token_id: int, **options: Any) -> BlockCausalDecoder:
        """A running batch that rows join and leave; see `BlockCausalDecoder`, also for `options`."""
        return BlockCausalDecoder(self, model, mask_token_id=mask_token_id, **options)
