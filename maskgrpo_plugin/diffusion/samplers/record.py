"""What a sampler notes of each token as it reveals it: its probability where it was drawn, and among which tokens."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from maskgrpo_plugin.diffusion.samplers.choice import truncate

FIELDS = ("sampler_log_prob", "sampler_entropy", "sampler_allowed")  # of `Rows`, in the order of a record's parts
NOTHING = -1  # in `allowed`: no token


@dataclass
class TokenRecord:
    """The distributions that the tokens of some responses were drawn from, each at the step that revealed the token.

    Of the probabilities 0.5, 0.3, 0.2 of the tokens 7, 8, 9 with `top_k=2`, the drawn token 8 has log 0.375, the
    entropy 0.662 and the allowed tokens [7, 8].

    Attributes:
        log_prob: (…,) float32, of the token; 0 where none was revealed.
        entropy: (…,) float32, of its distribution in nats; 0 where none was revealed.
        allowed: (…, K) int32, the tokens that `top_k` and `top_p` left it, in the order of their probability, then −1;
            −1 alone where neither acts, and where no token was revealed.
    """

    log_prob: Tensor
    entropy: Tensor
    allowed: Tensor

    @classmethod
    def blank(cls, rows: int, length: int, device: torch.device) -> "TokenRecord":
        """That of responses (rows, length) before their first step."""
        zeros = torch.zeros(rows, length, device=device)
        return cls(zeros, zeros.clone(), torch.full((rows, length, 1), NOTHING, dtype=torch.int32, device=device))

    @classmethod
    def of_draws(cls, logits: Tensor, chosen: Tensor, *, temperature: float, top_k: int, top_p: float) -> "TokenRecord":
        """That of tokens (N,) drawn from softmax(logits / temperature), (N, V), as `choose_tokens` draws them."""
        kept = truncate(logits / temperature, top_k, top_p)
        log_probs = kept.log_softmax(-1)
        possible = log_probs > float("-inf")
        entropy = -(log_probs.exp() * log_probs.masked_fill(~possible, 0)).sum(-1)
        log_prob = log_probs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        allowed = torch.full((len(chosen), 1), NOTHING, device=logits.device)
        if (top_k or top_p < 1) and len(chosen):
            counts = possible.sum(-1, keepdim=True)
            ids = log_probs.topk(int(counts.max()), dim=-1).indices
            behind = torch.arange(ids.shape[1], device=ids.device) >= counts
            allowed = ids.masked_fill(behind, NOTHING)
        return cls(log_prob.float(), entropy.float(), allowed.int())

    def of_rows(self, rows: int | list[int]) -> "TokenRecord":
        """That of some rows, or of one."""
        return TokenRecord(*(part[rows] for part in self.parts()))

    def followed_by(self, other: "TokenRecord") -> "TokenRecord":
        """The rows of both."""
        width = max(self.allowed.shape[-1], other.allowed.shape[-1])
        one, two = self.widened(width), other.widened(width)
        return TokenRecord(*(torch.cat(both) for both in zip(one.parts(), two.parts(), strict=True)))

    def widened(self, width: int) -> "TokenRecord":
        """With room for at least `width` allowed tokens."""
        missing = max(width - self.allowed.shape[-1], 0)
        return TokenRecord(self.log_prob, self.entropy, pad(self.allowed, (0, missing), value=NOTHING))

    def write(self, rows: Tensor, places: Tensor, drawn: "TokenRecord") -> "TokenRecord":
        """With what was noted of N tokens (N,) at these rows and places (N,)."""
        drawn = drawn.widened(self.allowed.shape[-1])
        found = self.widened(drawn.allowed.shape[-1])
        for own, new in zip(found.parts(), drawn.parts(), strict=True):
            own[rows, places] = new
        return found

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Its tensors, in their order."""
        return self.log_prob, self.entropy, self.allowed

    def fields(self) -> dict[str, Any]:
        """What travels with a response, by the names of `Rows`: arrays (R,) and (R, K)."""
        return {name: part.cpu().numpy() for name, part in zip(FIELDS, self.parts(), strict=True)}
