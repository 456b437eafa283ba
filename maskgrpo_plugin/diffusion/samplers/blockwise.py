"""What samplers that decode block after block share: which tokens come first, where a text ends, a batch that runs."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.samplers.base import OnStep, RunningBatch, Sampler, SamplerOutput, make_canvas
from maskgrpo_plugin.diffusion.samplers.blocks.quotas import QUOTAS
from maskgrpo_plugin.diffusion.samplers.choice import ORDERINGS
from maskgrpo_plugin.diffusion.samplers.noise import Generators
from maskgrpo_plugin.diffusion.samplers.options import flag, number, number_above, one_of, option, token_ids
from maskgrpo_plugin.diffusion.samplers.record import TokenRecord
from maskgrpo_plugin.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class BlockwiseSampler(Sampler):
    """A sampler of texts, block after block; a subclass has a `decoder`, and says which caches there are.

    Attributes:
        ordering: which masked tokens are revealed first. `low_confidence`: most probable first (LLaDA's name:
            low-confidence tokens stay masked); `random`; `entropy`: lowest first; `margin`: largest lead of the best
            token over the second best first.
        quota: how many tokens each step reveals: `even` (LLaDA), `rounded` (dLLM: A2D, LLaDA-MoE) or `dream`, see
            `quotas`.
        top_k, top_p: of the tokens that are drawn: the k most probable (0: all), the fewest that reach p together.
        parallel: `none`; or `threshold`: each step also reveals the tokens of at least the probability `threshold`,
            which needs `low_confidence`.
        threshold: of `parallel`, a probability in (0, 1].
        early_stop: whether a row that holds a stop token once a block is done takes no further blocks.
        stop_token_ids: tokens that end a response.
        fill_token_id: fills the blocks that were not decoded; None: the first stop token.
        cache: what is kept between passes; `none` computes all again.
        record: whether a `TokenRecord` is kept, for methods that compare with what the sampler drew from; at
            temperature 0 nothing is drawn, and none is kept. A step then waits for the device.

    Raises:
        OptionError: a value that cannot work.
    """

    modalities: ClassVar[tuple[str, ...]] = ("text",)

    ordering: str = option(one_of(*ORDERINGS), "low_confidence")
    quota: str = option(one_of(*QUOTAS), "even")
    top_k: int = option(number(0, whole=True), 0)
    top_p: float = option(number_above(0, 1), 1.0)
    parallel: str = option(one_of("none", "threshold"), "none")
    threshold: float = option(number_above(0, 1), 0.9)
    early_stop: bool = option(flag, True)
    stop_token_ids: tuple[int, ...] = option(token_ids, (), by_run=True)
    fill_token_id: int | None = option(number(0, whole=True), None)
    cache: str = option(one_of("none"), "none")
    record: bool = option(flag, False, by_run=True)

    def __post_init__(self):
        super().__post_init__()
        if self.parallel != "none" and self.ordering != "low_confidence":
            raise OptionError("parallel", self.parallel, "needs ordering low_confidence")
        if self.fill_token is not None and self.fill_token in self.forbidden_token_ids:
            raise OptionError("fill_token_id", self.fill_token, "is one of forbidden_token_ids")
        if self.record and self.top_p < 1 and not self.top_k:
            allowed = (
                f"with top_p={self.top_p}: 1 or more, the most tokens that the sampler's record holds of each draw"
            )
            raise OptionError("top_k", self.top_k, allowed)

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

    def with_rows(self, record: TokenRecord | None, rows: int, length: int, device: torch.device) -> TokenRecord | None:
        """The record of a batch which `rows` responses of so many tokens join; None where none is kept."""
        if not self.record or self.temperature == 0:
            return None
        joined = TokenRecord.blank(rows, length, device)
        return joined if record is None else record.followed_by(joined)

    def noted(
        self,
        record: TokenRecord,
        logits: Tensor,
        chosen: Tensor,
        revealed: Tensor,
        rows: Tensor,
        places: Tensor,
    ) -> TokenRecord:
        """The record after a step.

        Args:
            record: before it.
            logits: (N, K, V) that tokens were drawn from.
            chosen, revealed: (N, K) the tokens, and bool, those that the step revealed.
            rows: (N,) places of the rows in the record.
            places: (N, K) places of the tokens in their responses.
        """
        at = revealed.nonzero(as_tuple=True)
        drawn = TokenRecord.of_draws(
            logits[at], chosen[at], temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
        )
        return record.write(rows[at[0]], places[at], drawn)

    @property
    def draws(self) -> bool:
        """Whether two samples of a prompt can differ."""
        return self.temperature > 0 or self.ordering == "random"

    @property
    def takes_compiled_models(self) -> bool:
        """Layers compiled for any shape take no cache."""
        return self.cache == "none"

    def stopped(self, tokens: Tensor, reveal_step: Tensor) -> Tensor:
        """Whether rows (N, L) revealed a stop token, (N,) bool; visible tokens of a canvas do not count."""
        stops = torch.tensor(list(self.stops), device=tokens.device)
        return (torch.isin(tokens, stops) & (reveal_step >= 0)).any(-1)

    def filled(self, tokens: Tensor, mask_token_id: int) -> Tensor:
        """Tokens of any shape with the fill token in place of masks, where there is one."""
        return tokens if self.fill_token is None else tokens.masked_fill(tokens == mask_token_id, self.fill_token)

    @abstractmethod
    def decoder(self, model: Callable[..., Any], *, mask_token_id: int, **options: Any) -> RunningBatch:
        """An empty batch that rows join and leave.

        Args:
            model, mask_token_id: see `generate`.
            **options: of the batch: `response_length`, `pad_token_id`, `on_step`.
        """

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
            OptionError: the fill token is the mask token, or the model or the canvas does not fit the options.
            ValueError: the number of generators is not the batch size, or a cache with a model that takes none.
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
