"""Which further tokens a step reveals where the model is certain: parallel decoding, an approximation."""

import torch
from torch import Tensor

PARALLEL = ("none", "threshold", "factor", "hierarchical", "credit")


def reveal_more(
    rule: str, confidence: Tensor, columns: Tensor, valid: Tensor, *, threshold: float, factor: float
) -> Tensor:
    """Mark the tokens that a step may reveal beside its fixed number.

    Args:
        rule: `threshold`: those of at least this probability (Fast-dLLM, arXiv 2505.22618, Section 3.3); `factor`: the
            n most probable, n the largest with (n + 1)·(1 − c_n) < factor, c_n the n-th largest (the same, Eq. 6);
            `hierarchical`: `threshold`, and the most probable token of each run of neighbouring masks where its
            probability is at least half of the threshold (after dInfer, arXiv 2510.08666, hierarchical decoding);
            `credit`: `threshold`, of probabilities that `TraceCredit` has raised.
        confidence: (N, K) probabilities of the drawn tokens, −∞ where not `valid`.
        columns: (N, K) their columns, ascending where `valid`.
        valid: (N, K) bool.
        threshold: probability in (0, 1].
        factor: above 0.

    Returns:
        (N, K) bool.
    """
    if rule == "factor":
        ordered, order = confidence.sort(dim=-1, descending=True, stable=True)
        number = torch.arange(1, confidence.shape[1] + 1, device=confidence.device)
        allowed = ((number + 1) * (1 - ordered) < factor).long()
        largest = (allowed * number).amax(-1, keepdim=True)
        return torch.zeros_like(valid).scatter(-1, order, number <= largest) & valid
    certain = (confidence >= threshold) & valid
    if rule in ("threshold", "credit"):
        return certain
    starts = torch.ones_like(valid)
    starts[:, 1:] = columns[:, 1:] != columns[:, :-1] + 1
    run = starts.long().cumsum(-1) - 1
    best = torch.full_like(confidence, float("-inf")).scatter_reduce(-1, run, confidence, "amax")
    leads = (confidence == best.gather(-1, run)) & (confidence >= threshold / 2) & valid
    return certain | leads
