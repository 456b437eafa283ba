"""How samplers that decode block after block draw a token at each masked position, and say how certain it is."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.samplers.noise import Generators, draw_categories, uniform_table

ORDERINGS = ("low_confidence", "random", "entropy", "margin")
SEQUENTIAL = "sequential"


def choose_tokens(
    logits: Tensor,
    counts: Sequence[int],
    generator: Generators,
    *,
    temperature: float,
    ordering: str,
    top_k: int = 0,
    top_p: float = 1.0,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draw a token for each masked position, and say how certain it is.

    Args:
        logits: (N, K, V) float32 or float64, −∞ at tokens that must not be emitted.
        counts: N numbers of positions; what lies beyond them in a row is arbitrary.
        generator: see `uniform_table`.
        temperature: tokens are drawn from softmax(logits / temperature); 0 takes the most probable one.
        ordering: of `ORDERINGS`, see `BlockwiseSampler`; or `sequential`, from left to right.
        top_k, top_p: of the tokens that are drawn, see `truncate`.
        scale: the certainty is that of softmax(logits / scale), over all tokens.

    Returns:
        Tokens (N, K), and scores (N, K) whose highest are revealed first.
    """
    if temperature == 0:
        chosen = logits.argmax(-1)
    else:
        uniform = uniform_table(counts, logits.shape[1], generator, logits.device)
        chosen = draw_categories(truncate(logits / temperature, top_k, top_p), 1.0, uniform)
    if ordering == "random":
        return chosen, uniform_table(counts, logits.shape[1], generator, logits.device)
    if ordering == SEQUENTIAL:
        return chosen, -torch.arange(logits.shape[1], device=logits.device, dtype=logits.dtype).expand(chosen.shape)
    probabilities = (logits if scale == 1 else logits / scale).softmax(-1)
    if ordering == "low_confidence":
        return chosen, probabilities.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    if ordering == "margin":
        best = probabilities.topk(2, dim=-1).values
        return chosen, best[..., 0] - best[..., 1]
    return chosen, torch.xlogy(probabilities, probabilities).sum(-1)


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with −∞ at all but the `top_k` most probable tokens, and of those at all but the fewest whose
    probabilities reach `top_p` together.

    Probabilities 0.5, 0.3 and 0.2: `top_k=2` leaves the first two, and so does `top_p=0.7`; `top_p=0.5` the first.

    Args:
        logits: (…, V).
        top_k: 0 for all.
        top_p: in (0, 1]; 1 for all.
    """
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), float("-inf"))
    return logits
