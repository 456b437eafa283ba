"""The semi-autoregressive sampler of LLaDA (AR-like reversing): blocks left to right, the most certain tokens first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.samplers.base import (
    OnStep,
    Sampler,
    SamplerOptionError,
    SamplerOutput,
    ban,
    check_choice,
    check_number,
    check_token_ids,
    make_canvas,
)
from maskgrpo_plugin.diffusion.samplers.blocks.cache import CACHES
from maskgrpo_plugin.diffusion.samplers.blocks.decoder import SemiAutoregressiveDecoder
from maskgrpo_plugin.diffusion.samplers.blocks.parallel import PARALLEL
from maskgrpo_plugin.diffusion.samplers.noise import Generators, draw_categories, uniform_table

ORDERINGS = ("low_confidence", "random", "entropy", "margin")


@dataclass(frozen=True)
class SemiAutoregressiveSampler(Sampler):
    """Reveal k tokens a step, block after block (arXiv 2502.09992, Algorithm 5; arXiv 2510.02880, AR-like).

    Attributes:
        steps: steps in total; each block has steps / blocks of them.
        response_length: tokens appended to a prompt.
        block_length: tokens a block; None: one block.
        ordering: which masked tokens are revealed first: the most probable (`low_confidence` ones wait), `random`,
            lowest `entropy`, or largest `margin` of the two best.
        temperature: tokens are drawn from softmax(logits / temperature); 0 takes the most probable token.
        cfg_scale: w in un + (1 + w)(cond − un), un without the prompt; 0 for no guidance.
        stop_token_ids: a row that holds one of them once a block is done takes no further blocks.
        fill_token_id: fills the blocks that were not decoded; None: the first stop token.
        forbidden_token_ids: never emitted, like the mask token.
        cache: `none`; or what stays as it was at the start of the block (approximate, arXiv 2505.22618): keys and
            values of what lies before it (`prefix`), or of all but the block (`dual`).
        parallel: `none` reveals the fixed number of tokens a step; the others reveal more where the model is certain
            (approximate, needs `low_confidence`): see `reveal_more`.
        threshold: of `parallel`, a probability in (0, 1].
        factor: of `parallel=factor`, above 0.

    Raises:
        SamplerOptionError: a value that cannot work.
    """

    steps: int
    response_length: int
    block_length: int | None = None
    ordering: str = "low_confidence"
    temperature: float = 0.0
    cfg_scale: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    fill_token_id: int | None = None
    forbidden_token_ids: tuple[int, ...] = ()
    cache: str = "none"
    parallel: str = "none"
    threshold: float = 0.9
    factor: float = 1.0

    def __post_init__(self):
        check_number("response_length", self.response_length, 1, whole=True)
        check_number("steps", self.steps, 1, whole=True)
        if self.block_length is not None:
            check_number("block_length", self.block_length, 1, whole=True)
        check_number("temperature", self.temperature, 0)
        check_number("cfg_scale", self.cfg_scale, 0)
        check_choice("ordering", self.ordering, ORDERINGS)
        check_choice("cache", self.cache, CACHES)
        check_choice("parallel", self.parallel, PARALLEL)
        if self.parallel != "none" and self.ordering != "low_confidence":
            raise SamplerOptionError("parallel", self.parallel, "needs ordering low_confidence")
        if isinstance(self.threshold, bool) or not 0 < self.threshold <= 1:
            raise SamplerOptionError("threshold", self.threshold, "allowed: above 0, up to 1")
        if isinstance(self.factor, bool) or not 0 < self.factor < float("inf"):
            raise SamplerOptionError("factor", self.factor, "allowed: above 0")
        for option in ("stop_token_ids", "forbidden_token_ids"):
            check_token_ids(option, getattr(self, option))
        if self.fill_token_id is not None:
            check_number("fill_token_id", self.fill_token_id, 0, whole=True)
        if self.fill_token is not None and self.fill_token in self.forbidden_token_ids:
            raise SamplerOptionError("fill_token_id", self.fill_token, "is one of forbidden_token_ids")
        block = self.block_length or self.response_length
        if self.response_length % block:
            raise SamplerOptionError("block_length", block, f"must divide the response length {self.response_length}")
        blocks = self.response_length // block
        if self.steps < blocks:
            raise SamplerOptionError("steps", self.steps, f"there are {blocks} blocks; each needs a step or more")
        if self.steps % blocks:
            raise SamplerOptionError("steps", self.steps, f"must be a multiple of the {blocks} blocks")
        if self.steps // blocks > block:
            raise SamplerOptionError("steps", self.steps, f"a block of {block} tokens has at most {block} steps")

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
        """Sample a batch; see `Sampler.generate`. At temperature 0 it equals the published sampler token for token.

        On a canvas, blocks run from the first mask of any row to the end, and share `steps` as evenly as can be.

        Raises:
            SamplerOptionError: `fill_token_id` is the mask token, or a canvas has more blocks than there are steps.
            ValueError: not one generator a row, or a cache with a model that takes none.
        """
        canvas = make_canvas(input_ids, attention_mask, self.response_length, mask_token_id)
        rows, length = canvas.tokens.shape
        own = generator if isinstance(generator, Sequence) else [generator] * rows
        decoder = self.decoder(
            model, mask_token_id=mask_token_id, response_length=length - canvas.start, on_step=on_step
        )
        decoder.join(canvas.tokens, canvas.attention_mask, own)
        while decoder.running:
            decoder.decode_block()
        return decoder.output()

    def decoder(self, model: Callable[..., Any], *, mask_token_id: int, **options: Any) -> SemiAutoregressiveDecoder:
        """A running batch that rows join and leave between blocks; see `SemiAutoregressiveDecoder`."""
        return SemiAutoregressiveDecoder(self, model, mask_token_id=mask_token_id, **options)

    @property
    def fill_token(self) -> int | None:
        """The token that fills blocks after a stop token; None where nothing stops early."""
        if not self.stop_token_ids:
            return None
        return self.stop_token_ids[0] if self.fill_token_id is None else self.fill_token_id

    def choose(
        self, logits: Tensor, counts: list[int], generator: Generators, mask_token_id: int
    ) -> tuple[Tensor, Tensor]:
        """Draw a token for each masked position, and say how certain it is; (N, K, V) -> two of (N, K).

        Row n has `counts[n]` positions; what lies beyond is arbitrary. `logits` are overwritten.
        """
        logits = ban(logits, (mask_token_id, *self.forbidden_token_ids))
        if self.temperature == 0:
            chosen = logits.argmax(-1)
        else:
            uniform = uniform_table(counts, logits.shape[1], generator, logits.device)
            chosen = draw_categories(logits, self.temperature, uniform)
        if self.ordering == "random":
            return chosen, uniform_table(counts, logits.shape[1], generator, logits.device)
        probabilities = logits.softmax(-1)
        if self.ordering == "low_confidence":
            return chosen, probabilities.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        if self.ordering == "margin":
            best = probabilities.topk(2, dim=-1).values
            return chosen, best[..., 0] - best[..., 1]
        return chosen, torch.xlogy(probabilities, probabilities).sum(-1)
