"""Models that were autoregressive: the logits of a token stand one position before it (Dream, arXiv 2508.15487).

`logits_shift` is 0 where position n predicts its own token, and 1 where it predicts that of n + 1. The first token of
a row has no position before it, so its own is read, as in Dream's published code. Padding is passed over.
"""

import torch
from torch import Tensor


def predicting_columns(attention_mask: Tensor) -> Tensor:
    """The column where the logits of each column's token stand, with a shift of 1.

    The mask `0 1 1 1` gives `0 1 1 2`.

    Args:
        attention_mask: (B, L), 1 = token, 0 = padding.

    Returns:
        (B, L) int64.
    """
    columns = torch.arange(attention_mask.shape[1], device=attention_mask.device).expand(attention_mask.shape)
    latest = columns.where(attention_mask.bool(), -1).cummax(-1).values
    before = torch.nn.functional.pad(latest[:, :-1], (1, 0), value=-1)
    return before.where(before >= 0, columns)


def logits_in_place(logits: Tensor, logits_shift: int, attention_mask: Tensor | None) -> Tensor:
    """Logits (B, L, V) as the model gives them, each moved to the column of its token.

    Args:
        logits: (B, L, V).
        logits_shift: 0 or 1.
        attention_mask: (B, L), 1 = token, 0 = padding; None, or one of another form, where nothing is padded.
    """
    if logits_shift == 0:
        return logits
    if attention_mask is None or attention_mask.dim() != 2:
        attention_mask = torch.ones(logits.shape[:2], device=logits.device)
    columns = predicting_columns(attention_mask)
    return logits.gather(1, columns.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
