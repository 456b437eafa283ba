"""Log-likelihood (and entropy) of the tokens at masked positions, in chunks so that few logits live at once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class SamplingDistribution:
    """What a sampler drew tokens from, where that is not the model's own softmax: the softmax of logits/temperature
    over the tokens that might be emitted.

    Attributes:
        temperature: above 0.
        banned: ids that are never emitted, such as the mask token's.
        allowed: (N, K) integer ids that each of N tokens might have been, in any order, −1 for none; a row of −1 alone
            stands for all ids. None: all ids for all tokens.
    """

    temperature: float = 1.0
    banned: tuple[int, ...] = ()
    allowed: Tensor | None = None

    def logits(self, logits: Tensor) -> Tensor:
        """(N, V) logits whose softmax it is, −∞ at what could not be drawn; float32, or float64 where they are."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
        if self.banned:
            out = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            out[list(self.banned)] = True
            logits = logits.masked_fill(out, float("-inf"))
        if self.allowed is None:
            return logits
        ids = self.allowed.long()
        beyond = logits.shape[-1]
        kept = torch.zeros(len(ids), beyond + 1, dtype=torch.bool, device=logits.device)
        kept = kept.scatter(1, ids.masked_fill(ids < 0, beyond), True)[:, :beyond] | (ids < 0).all(1, keepdim=True)
        return logits.masked_fill(~kept, float("-inf"))

    def of(self, tokens: slice) -> "SamplingDistribution":
        """That of some of the N tokens."""
        return self if self.allowed is None else replace(self, allowed=self.allowed[tokens])


def masked_log_probs(
    hidden: Tensor,
    project: Callable[[Tensor], Tensor],
    target_ids: Tensor,
    *,
    chunk_size: int = 1024,
    with_entropy: bool = False,
    vocab_slice: tuple[int, int] | None = None,
    sampling: SamplingDistribution | None = None,
) -> tuple[Tensor, Tensor | None]:
    """ℓ_n = log p(o_n | ô, c) at masked positions n (the token likelihood of arXiv 2510.02880, Eq. 2).

    The logits are taken to float32 (float64 stays), and ℓ = logit − logsumexp. Rows go through the head in chunks;
    where gradients are on, each chunk is checkpointed, so that its logits are computed again in the backward pass and
    at most one chunk of them lives at any time. With N = 0 the head runs once on no rows: the results are empty and
    still lead back to `hidden` and the head's weights, so that the backward pass has the same collectives on all ranks.

    Args:
        hidden: (N, D) final hidden states at the masked positions only.
        project: the head, (n, D) -> (n, V), for any n from 0 to `chunk_size`; rows must not depend on one another.
        target_ids: (N,) integer token ids o_n. Ids outside the vocabulary, or outside `vocab_slice`, are the caller's
            mistake: an IndexError or RuntimeError on the CPU, a device assertion on CUDA (no check, as it would
            synchronise).
        chunk_size: rows per chunk, 1 or more.
        with_entropy: also return the entropy of each position's distribution, differentiable; it reads the whole
            distribution, which costs some more memory per chunk.
        vocab_slice: (start, stop), the softmax is over the logits [start, stop) only (the codebook of images). A head
            that computes only these columns can be given instead, with target ids counted from `start`.
        sampling: what the tokens were drawn from, in place of the softmax; not with `vocab_slice`.

    Returns:
        log_probs (N,), at most 0, and entropy (N,) in nats or None; float32, or float64 where the logits are.

    Raises:
        ValueError: a shape, `chunk_size` or `vocab_slice` does not fit.
    """
    _check_rows(hidden, target_ids, chunk_size)

    def one_chunk(
        rows: Tensor, targets: Tensor, drawn_from: SamplingDistribution | None
    ) -> tuple[Tensor, Tensor | None]:
        logits = _select_vocabulary(project(rows), rows.shape[0], vocab_slice)
        if drawn_from is not None:
            logits = drawn_from.logits(logits)
        start = 0 if vocab_slice is None else vocab_slice[0]
        return _log_probs_and_entropy(logits, targets - start, with_entropy)

    if hidden.shape[0] == 0:
        return one_chunk(hidden, target_ids, sampling)
    pieces = []
    for first in range(0, hidden.shape[0], chunk_size):
        chunk = slice(first, first + chunk_size)
        given = hidden[chunk], target_ids[chunk], None if sampling is None else sampling.of(chunk)
        if torch.is_grad_enabled():
            pieces.append(checkpoint(one_chunk, *given, use_reentrant=False))
        else:
            pieces.append(one_chunk(*given))
    log_probs = torch.cat([piece[0] for piece in pieces])
    entropy = torch.cat([piece[1] for piece in pieces]) if with_entropy else None
    return log_probs, entropy


def fused_log_probs(
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    *,
    chunk_size: int = 512,
    vocab_slice: tuple[int, int] | None = None,
    kept_mib: int = 512,
) -> Tensor:
    """`masked_log_probs` of a head that is one matrix, in fewer operations.

    Head, normalisation and their gradients are computed chunk by chunk. The backward pass keeps the normalisers, and
    computes again the logits that were not kept.

    Written by hand, since the fused losses of libraries (liger) need the loss's factor in the forward pass, and here it
    is known only after the ratio. Under autocast the matrix products are in its dtype. Only first derivatives exist.

    Args:
        hidden: (N, D) final hidden states at the masked positions only.
        weight: (V, D) of the head.
        target_ids, chunk_size, vocab_slice: as in `masked_log_probs`.
        kept_mib: most MiB of logits that are kept for the backward pass, chunk by chunk.

    Returns:
        log_probs (N,), at most 0; float32, or float64 where `hidden` is.

    Raises:
        ValueError: a shape, `chunk_size` or `vocab_slice` does not fit.
    """
    _check_rows(hidden, target_ids, chunk_size)
    start = 0
    if vocab_slice is not None:
        _check_slice(vocab_slice, weight.shape[0])
        start = vocab_slice[0]
        weight = weight[start : vocab_slice[1]]
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    kept_bytes = kept_mib * 2**20 if torch.is_grad_enabled() else 0
    return _FusedLogProbs.apply(hidden, weight, target_ids.long() - start, chunk_size, kept_bytes)


class _FusedLogProbs(torch.autograd.Function):
    """ℓ_n = z_n[o_n] − logsumexp z_n with z = W·h; ∂ℓ_n/∂z_n = onehot(o_n) − softmax(z_n)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int, kept_bytes: int) -> Tensor:
        precise = torch.promote_types(hidden.dtype, torch.float32)
        normaliser = torch.empty(hidden.shape[0], dtype=precise, device=hidden.device)
        log_probs = torch.empty_like(normaliser)
        kept = []
        for first in range(0, hidden.shape[0], chunk_size):
            rows = slice(first, first + chunk_size)
            product = hidden[rows] @ weight.T
            kept_bytes -= product.nbytes
            if kept_bytes >= 0:
                kept.append(product)
            at_target = targets[rows].unsqueeze(-1)
            log_probs[rows] = product.log_softmax(-1, dtype=precise).gather(-1, at_target).squeeze(-1)
            normaliser[rows] = product.gather(-1, at_target).squeeze(-1).to(precise) - log_probs[rows]
        overwritten = torch.zeros((), dtype=torch.bool)
        ctx.save_for_backward(hidden, weight, targets, normaliser, overwritten, *kept)
        ctx.chunk_size = chunk_size
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, targets, normaliser, overwritten, *kept = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight and not len(hidden) else None
        for number, first in enumerate(range(0, hidden.shape[0], ctx.chunk_size)):
            rows = slice(first, first + ctx.chunk_size)
            # `.data`: kept logits become errors in their place, and a second backward pass finds `overwritten` true
            errors = kept[number].data if number < len(kept) else hidden[rows] @ weight.T
            if number >= len(kept) or not overwritten:
                errors = _errors(errors, normaliser[rows], targets[rows])
            factor = -grad[rows].unsqueeze(-1)
            if grad_hidden is not None:
                grad_hidden[rows] = (errors @ weight) * factor
            if needs_weight:
                scaled = (hidden[rows] * factor).to(hidden.dtype)
                grad_weight = errors.T @ scaled if grad_weight is None else grad_weight.addmm_(errors.T, scaled)
        overwritten.data.fill_(hidden.dtype == normaliser.dtype)
        return grad_hidden, grad_weight, None, None, None


def _errors(logits: Tensor, normaliser: Tensor, targets: Tensor) -> Tensor:
    """softmax(z_n) − onehot(o_n) of (N, V) logits, in their dtype; in their place where that is the normaliser's."""
    in_place = logits.dtype == normaliser.dtype
    shifted = logits.sub_(normaliser.unsqueeze(-1)) if in_place else logits - normaliser.unsqueeze(-1)
    minus = torch.full_like(normaliser, -1.0).unsqueeze(-1)
    return shifted.exp_().scatter_add_(-1, targets.unsqueeze(-1), minus).to(logits.dtype)


Score = Callable[[Tensor, Tensor, tuple[int, int] | None], tuple[Tensor, Tensor | None]]


def sliced_log_probs(
    hidden: Tensor, score: Score, target_ids: Tensor, vocab_slice: tuple[int, int]
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities where text and image tokens are mixed: the softmax of a target within `vocab_slice` is over
    that slice alone (arXiv 2510.02880: images over the codebook), of any other over the whole vocabulary.

    Args:
        hidden: (N, D) final hidden states at the masked positions only.
        score: (hidden, targets, vocab_slice or None) -> log-probabilities and entropies or None, such as
            `masked_log_probs` with a head.
        target_ids: (N,) integer token ids.
        vocab_slice: (start, stop).

    Returns:
        As `score`, in the order of `target_ids`.
    """
    inside = (target_ids >= vocab_slice[0]) & (target_ids < vocab_slice[1])
    order = torch.cat([inside.nonzero().squeeze(-1), (~inside).nonzero().squeeze(-1)])
    pieces = [
        score(hidden[part], target_ids[part], columns) for part, columns in ((inside, vocab_slice), (~inside, None))
    ]
    back = order.argsort()
    log_probs = torch.cat([piece[0] for piece in pieces])[back]
    entropies = [piece[1] for piece in pieces if piece[1] is not None]
    return log_probs, torch.cat(entropies)[back] if entropies else None


def _check_rows(hidden: Tensor, target_ids: Tensor, chunk_size: int) -> None:
    if hidden.dim() != 2:
        raise ValueError(f"hidden must be (N, D), got shape {tuple(hidden.shape)}")
    if target_ids.shape != hidden.shape[:1]:
        raise ValueError(f"target_ids must have shape ({hidden.shape[0]},), got {tuple(target_ids.shape)}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be 1 or more, got {chunk_size}")


def _check_slice(vocab_slice: tuple[int, int], width: int) -> None:
    start, stop = vocab_slice
    if not 0 <= start < stop <= width:
        raise ValueError(f"vocab_slice must satisfy 0 <= start < stop <= {width} (the head's width), got {vocab_slice}")


def _select_vocabulary(logits: Tensor, rows: int, vocab_slice: tuple[int, int] | None) -> Tensor:
    """The part (n, V') of the logits (n, V) that the softmax is over."""
    if logits.dim() != 2 or logits.shape[0] != rows:
        raise ValueError(f"project must map ({rows}, D) to ({rows}, V), got shape {tuple(logits.shape)}")
    if vocab_slice is None:
        return logits
    _check_slice(vocab_slice, logits.shape[1])
    return logits[:, vocab_slice[0] : vocab_slice[1]]


def _log_probs_and_entropy(logits: Tensor, targets: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
    """log p of the targets (n,), and entropy −Σ p·log p (n,), from logits (n, V)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = logits.gather(-1, targets.long().unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)
    if not with_entropy:
        return log_probs, None
    # not logsumexp − Σ p·logit, which cancels where one token has nearly all the probability
    all_log_probs = logits.log_softmax(dim=-1)
    # a banned token has log p = -inf and p = 0; their product must be 0, not nan
    finite = all_log_probs.masked_fill(all_log_probs == -torch.inf, 0.0)
    return log_probs, -(all_log_probs.exp() * finite).sum(dim=-1)
