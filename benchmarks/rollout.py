"""Text rollout against the published algorithm written out plainly: same weights, prompts and lengths, in one run.

  python benchmarks/rollout.py                                  # the two CPU settings of docs/performance.md
  python benchmarks/rollout.py --size 8b --canvas 512 --batch 32 --lengths gsm8k       # on a GPU
  python benchmarks/rollout.py --grid                           # canvas 256, 512, 1024 × batch 1, 6, 32 × vocabulary
  python benchmarks/rollout.py --size 256x4 --canvas 256 --batch 6 --requests 36 --lengths gsm8k   # a queue of requests
  python benchmarks/rollout.py --size 256x4 --canvas 256 --batch 6 --certain 0.25      # and an approximate mode

Tokens are compared up to the first end token. Random weights end nowhere, so answers end where `--lengths` says: `full`
(nowhere), or `gsm8k` (log-normal, mean half of the response). They are certain of nothing either: with `--certain` the
approximate mode (dual cache, threshold 0.9) is timed on a model that is certain of that share of the masked tokens at
each call, drawn at random. `approximate.py` has what such modes cost in accuracy.
"""

import argparse
import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from common import SIZES, add_device_options, device_of, free_bytes, make_model, side_by_side, write_table
from torch import Tensor

from maskgrpo_plugin.diffusion.samplers import build_sampler

TARGETS = [  # size, vocabulary, prompt, response, block, steps, batch
    ("256x4", 126464, 64, 128, 32, 16, 2),
    ("512x8", 126464, 64, 128, 32, 16, 2),
]


class Ending:
    """A model whose answers end where they are told to: the end token is certain from there on, impossible before.

    A row is known by its first token, since samplers may leave rows out; a block cache keeps its length as one layer
    more. Of other tokens the model is made `certain` of that share at each call.
    """

    supports_logits_positions = True
    supports_block_cache = True

    def __init__(self, model: Any, start: int, lengths: Tensor, end_token_id: int, certain: float = 0.0):
        self.model, self.start, self.lengths, self.end_token_id = model, start, lengths, end_token_id
        self.certain = certain

    def _lengths(self, tokens: Tensor, cache: Any, first: int) -> Tensor:
        if cache is None:
            return self.lengths[tokens[:, 0]]
        if first == 0:
            lengths = self.lengths[tokens[:, 0]].view(-1, 1, 1, 1)
            cache.update(len(cache.keys), lengths, lengths, 0)
        return cache.keys[-1].flatten()

    def __call__(self, tokens: Tensor, attention_mask: Tensor | None = None, logits_positions=None, **options: Any):
        output = self.model(tokens, attention_mask=attention_mask, logits_positions=logits_positions, **options)
        first = options.get("first_column", 0)
        ends = self.start + self._lengths(tokens, options.get("cache"), first).unsqueeze(1)
        columns = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape) + first
        ended = columns >= ends
        if logits_positions is not None:
            by_index = logits_positions.dtype == torch.int64
            ended = ended.gather(1, logits_positions) if by_index else ended[logits_positions]
        logits = output.logits
        logits[..., self.end_token_id] = torch.where(ended, 1e4, -1e4).to(logits.dtype)
        if self.certain:
            hit = torch.rand(logits.shape[:-1], device=logits.device) < self.certain
            best = logits.argmax(-1, keepdim=True)
            logits.scatter_add_(-1, best, (hit * 1e4).unsqueeze(-1).to(logits.dtype))
        return SimpleNamespace(logits=logits)


@torch.no_grad()
def plain_decode(
    model: Callable[..., Any], prompts: Tensor, response: int, block: int, steps: int, mask_token_id: int
) -> Tensor:
    """Semi-autoregressive decoding at temperature 0 as published: the whole canvas through the model and its head at
    every step, probabilities of every position in float64, every block.
    """
    canvas = torch.full((prompts.shape[0], prompts.shape[1] + response), mask_token_id, device=prompts.device)
    canvas[:, : prompts.shape[1]] = prompts
    blocks = response // block
    for number in range(blocks):
        end = prompts.shape[1] + (number + 1) * block
        remaining = int((canvas[0, end - block : end] == mask_token_id).sum())
        steps_left = steps // blocks
        while steps_left:
            reveal = math.ceil(remaining / steps_left)
            masked = canvas == mask_token_id
            logits = model(canvas).logits
            logits[..., mask_token_id] = -math.inf
            guess = logits.argmax(-1)
            certainty = logits.to(torch.float64).softmax(-1).gather(-1, guess.unsqueeze(-1)).squeeze(-1)
            certainty = certainty.masked_fill(~masked, -math.inf)
            certainty[:, end:] = -math.inf
            for row in range(canvas.shape[0]):
                chosen = certainty[row].topk(reveal).indices
                canvas[row, chosen] = guess[row, chosen]
            remaining -= reveal
            steps_left -= 1
    return canvas


def answer_lengths(kind: str, rows: int, response: int) -> Tensor:
    """Tokens of each answer, (rows,) int64: `full`, or `gsm8k`, log-normal with mean half of the response."""
    if kind == "full":
        return torch.full((rows,), response)
    spread = 0.45
    draws = torch.randn(4096, generator=torch.Generator().manual_seed(1)) * spread
    lengths = (draws - spread**2 / 2).exp() * response / 2
    return lengths.clamp(4, response).long()[:rows]


def agreement(first: Tensor, second: Tensor, start: int, end_token_id: int) -> float:
    """Share of tokens that are equal, up to each row's first end token."""
    equal = total = 0
    for a, b in zip(first[:, start:].tolist(), second[:, start:].tolist(), strict=True):
        length = a.index(end_token_id) + 1 if end_token_id in a else len(a)
        equal += sum(x == y for x, y in zip(a[:length], b[:length], strict=True))
        total += length
    return equal / total


def decode_queue(sampler: Any, model: Any, prompts: Tensor, batch: int, mask_token_id: int) -> Tensor:
    """Decode prompts (N, P) in one running batch of `batch` rows at most; waiting ones join as others end; (N, L)."""
    decoder = sampler.decoder(model, mask_token_id=mask_token_id)
    canvases = torch.nn.functional.pad(prompts, (0, sampler.response_length), value=mask_token_id)
    result, joined = canvases.clone(), 0
    with torch.no_grad():
        while joined < len(prompts) or decoder.running:
            free = min(batch - len(decoder.rows), len(prompts) - joined)
            if free:
                decoder.join(canvases[joined : joined + free].clone(), None, [None] * free)
                joined += free
            decoder.decode_block()
            for row in decoder.leave():
                result[row.number, -sampler.response_length :] = row.response
    return result


def measure(setting: tuple, options: argparse.Namespace) -> list[str]:
    """One line of the table."""
    size, vocabulary, prompt, response, block, steps, batch = setting
    requests = options.requests or batch
    device, dtype = device_of(options)
    base = make_model(size, vocabulary, device, dtype, attention=options.attention)
    mask, end = base.config.mask_token_id, base.config.eos_token_id
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randint(requests, vocabulary - 2, (requests, prompt), generator=generator)
    prompts[:, 0] = torch.arange(requests)
    prompts = prompts.to(device)
    lengths = answer_lengths(options.lengths, requests, response)
    model = Ending(base, prompt, lengths.to(device), end)
    common = {"steps": steps, "response_length": response, "block_length": block, "temperature": 0.0}
    sampler = build_sampler("semi_autoregressive", stop_token_ids=(end,), **common)

    def in_batches(decode: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([decode(rows) for rows in prompts.split(batch)])

    ways = {
        "plain": lambda: in_batches(lambda rows: plain_decode(model, rows, response, block, steps, mask)),
        "exact": lambda: in_batches(lambda rows: sampler.generate(model, rows, mask_token_id=mask).sequences),
    }
    if options.requests:
        ways["joining"] = lambda: decode_queue(sampler, model, prompts, batch, mask)
    if options.certain:
        guessing = Ending(base, prompt, lengths.to(device), end, options.certain)
        approximate = {"cache": "dual", "parallel": "threshold", "threshold": 0.9}
        fast = build_sampler("semi_autoregressive", stop_token_ids=(end,), **common, **approximate)
        ways["approximate"] = lambda: [fast.generate(guessing, p, mask_token_id=mask) for p in prompts.split(batch)]
    measured = side_by_side(ways, device, options.repeats)
    if options.compile:
        from maskgrpo_plugin.workers.rollout.server import compile_layers

        compile_layers(base)
        measured["compiled"] = side_by_side({"compiled": ways["exact"]}, device, options.repeats)["compiled"]
    plain, exact = measured["plain"], measured["exact"]
    line = [
        size,
        f"{vocabulary}",
        f"{prompt}+{response}",
        f"{batch}",
        f"{block}/{steps}",
        f"{lengths.float().mean():.0f}",
        f"{plain.seconds:.2f}",
        f"{exact.seconds:.2f}",
        f"{plain.seconds / exact.seconds:.2f}×",
        f"{plain.peak_mib:.0f}",
        f"{exact.peak_mib:.0f}",
        f"{agreement(plain.result, exact.result, prompt, end):.4f}",
    ]
    if options.requests:
        joining = measured["joining"]
        line += [
            f"{joining.seconds:.2f}",
            f"{plain.seconds / joining.seconds:.2f}×",
            f"{agreement(plain.result, joining.result, prompt, end):.4f}",
        ]
    if options.certain:
        fastest = measured["approximate"]
        calls = torch.cat([output.row_model_calls for output in fastest.result]).sum()
        decoded = (lengths // block + 1).clamp(max=response // block).sum() * block
        line += [
            f"{fastest.seconds:.2f}",
            f"{plain.seconds / fastest.seconds:.2f}×",
            f"{decoded / calls:.1f}",
        ]
    if options.compile:
        compiled = measured["compiled"]
        line += [
            f"{compiled.seconds:.2f}",
            f"{plain.seconds / compiled.seconds:.2f}×",
            f"{agreement(plain.result, compiled.result, prompt, end):.4f}",
        ]
    return line


def settings(options: argparse.Namespace) -> list[tuple]:
    """The settings that the command line asks for."""
    if options.grid:
        fits = free_bytes(torch.device(options.device)) // 24  # logits of the canvas, and two float64 copies of them
        grid = itertools.product((256, 512, 1024), (1, 6, 32), (32000, 126464))
        return [
            (options.size or "256x4", v, c // 4, c - c // 4, 32, (c - c // 4) // 16, b)
            for c, b, v in grid
            if c * b * v < fits
        ]
    if options.size is None:
        return TARGETS
    response = options.canvas // 2
    steps = options.steps or response // 2
    return [(options.size, options.vocabulary, options.canvas - response, response, 32, steps, options.batch)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_options(parser)
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--vocabulary", type=int, default=126464)
    parser.add_argument("--canvas", type=int, default=512, help="prompt and response, half each")
    parser.add_argument("--steps", type=int, help="default: half of the response")
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--requests", type=int, help="a queue of so many, also decoded with waiting ones joining")
    parser.add_argument("--lengths", choices=["full", "gsm8k"], default="full")
    parser.add_argument("--certain", type=float, default=0.0, help="time an approximate mode too, with such a model")
    parser.add_argument("--compile", action="store_true", help="time the exact mode with compiled layers too")
    parser.add_argument("--attention", default="sdpa", help="transformers' name: sdpa, flash_attention_2, eager")
    parser.add_argument("--grid", action="store_true", help="all canvases, batches and vocabularies")
    options = parser.parse_args()
    rows = [measure(setting, options) for setting in settings(options)]
    header = ["size", "vocabulary", "canvas", "batch", "block/steps", "mean answer", "plain s", "exact s", "ratio"]
    header += ["plain MiB", "exact MiB", "equal tokens"]
    header += ["joining s", "ratio", "equal tokens"] if options.requests else []
    header += ["approximate s", "ratio", "tokens a call"] if options.certain else []
    header += ["compiled s", "ratio", "equal tokens"] if options.compile else []
    write_table(header, rows)


if __name__ == "__main__":
    main()
