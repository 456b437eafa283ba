"""Flex attention's mask of a line of tokens, made of the spans that they attend to; no mask of T² entries is formed."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

TILE = 128  # queries and keys that flex attention computes at once


def tile_mask(start: Tensor, stop: Tensor) -> BlockMask:
    """The mask of T queries, each of which attends to the places [start, stop) of its spans.

    Three tokens, the last of which attends to all and the others to themselves, by one span each:

        start   0 1 0
        stop    1 2 3

    Args:
        start, stop: (S, T) int64; a span with `stop` ≤ `start` is empty. Spans of one token do not touch each other.

    Returns:
        The mask (1, 1, T, T): tiles that no query of a tile attends to are left out, and those that all of them attend
        to are computed without a mask.
    """
    tokens = start.shape[-1]
    stop = torch.maximum(start, stop)
    touched = _queries(start // TILE, torch.where(start < stop, (stop - 1) // TILE + 1, start // TILE)) > 0
    whole = _queries((start - 1) // TILE + 1, stop // TILE) == TILE
    spans = list(zip(start.unbind(), stop.unbind(), strict=True))

    def attends(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        first, *others = ((key >= begin[query]) & (key < end[query]) for begin, end in spans)
        for span in others:
            first = first | span
        return first

    partial = _in_order(touched & ~whole)
    return BlockMask.from_kv_blocks(
        *partial, *_in_order(whole), BLOCK_SIZE=TILE, mask_mod=attends, seq_lengths=(tokens, tokens)
    )


def _queries(first: Tensor, last: Tensor) -> Tensor:
    """How many queries of each tile have a span over the key tiles [first, last); (S, T) -> (tiles, tiles) int32."""
    spans, tokens = first.shape
    tiles = -(-tokens // TILE)
    last = torch.maximum(first, last)
    row = (torch.arange(tokens, device=first.device) // TILE).expand(spans, -1)
    steps = torch.zeros(tiles, tiles + 1, dtype=torch.int32, device=first.device)
    one = torch.ones((), dtype=torch.int32, device=first.device)
    steps.index_put_((row, first), one, accumulate=True)
    steps.index_put_((row, last), -one, accumulate=True)
    return steps.cumsum(-1, dtype=torch.int32)[:, :-1]


def _in_order(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Number of chosen key tiles of each query tile, (1, 1, tiles), and all of them, (1, 1, tiles, tiles), in order."""
    places = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[None, None], places.to(torch.int32)[None, None]
