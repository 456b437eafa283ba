"""Trace credit: a token that the model keeps predicting becomes certain sooner (CreditDecoding, arXiv 2510.06133)."""

import torch
from torch import Tensor

WEIGHT, DECAY, POWER = 0.7, 0.8, 0.2  # α, β and γ as dInfer (arXiv 2510.08666) has them


class TraceCredit:
    """What the model predicted at each place of a block, and how surely, at the steps so far.

    After step t, C_t(v) = β·C_{t−1}(v) + p_t(v)^γ for the most probable token v of a place and β·C_{t−1}(v) for others.
    Only tokens that were most probable once have credit, so that a step keeps one token per place, not a vocabulary.

    Args:
        rows: number of rows N.
        places: columns per block.
        device: where the logits live.
    """

    def __init__(self, rows: int, places: int, device: torch.device):
        self.tokens = torch.empty(rows, places, 0, dtype=torch.int64, device=device)
        self.shares = torch.empty(rows, places, 0, dtype=torch.float32, device=device)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (M,) of the N."""
        self.tokens, self.shares = self.tokens[rows], self.shares[rows]

    def fuse(self, logits: Tensor, places: Tensor, valid: Tensor) -> Tensor:
        """Take one step's logits in, and add α·log(1 + C) to them.

        A place whose best token had the probability 0.5 at two steps has C = 0.8·0.5^0.2 + 0.5^0.2 = 1.57, and that
        token's logit rises by 0.7·log 2.57 = 0.66.

        Args:
            logits: (N, K, V) float32 or float64, overwritten.
            places: (N, K) int64, their places in the block, each at most once per row.
            valid: (N, K) bool; logits that are not valid earn no credit.

        Returns:
            (N, K, V).
        """
        probability, best = logits.softmax(-1).max(-1)
        share = torch.where(valid, probability.float() ** POWER, 0.0)
        nothing = self.shares.new_zeros(*self.shares.shape[:2], 1)
        newest = nothing.long().scatter(1, places.unsqueeze(-1), best.unsqueeze(-1))
        newest_share = nothing.scatter(1, places.unsqueeze(-1), share.unsqueeze(-1))
        self.tokens = torch.cat([self.tokens, newest], dim=-1)
        self.shares = torch.cat([self.shares * DECAY, newest_share], dim=-1)
        at = places.unsqueeze(-1).expand(-1, -1, self.tokens.shape[-1])
        tokens, shares = self.tokens.gather(1, at), self.shares.gather(1, at)
        credit = ((tokens.unsqueeze(-1) == tokens.unsqueeze(-2)) * shares.unsqueeze(-2)).sum(-1)
        return logits.scatter(-1, tokens, logits.gather(-1, tokens) + WEIGHT * credit.log1p().to(logits.dtype))
