"""One inner update against the plain way: same weights, masks, advantages and loss, forward and backward, in one run.

  python benchmarks/update.py                                   # the CPU settings of docs/performance.md
  python benchmarks/update.py --size 8b --batch 4 --checkpointing --frozen-head    # on a GPU
  python benchmarks/update.py --grid                            # canvas 256, 512, 1024 × batch 1, 6 × vocabulary

Plain: the head on the whole canvas, cross-entropy in float32 over the response. Ours: the engine's call, head and
normalisation of masked positions in chunks, no padding. Both then take the clipped surrogate and k3 penalty of the
masked tokens. `TFLOP/s` counts the model's arithmetic, without what gradient checkpointing computes again; `of
matrices` is its share of the fastest matrix product of this device. Memory is above the weights, with all gradients.
"""

import argparse
import itertools
from typing import Any

import torch
from common import (
    SIZES,
    add_device_options,
    device_of,
    forward_flops,
    make_model,
    mask_inputs,
    matrix_rate,
    padding_mask,
    side_by_side,
    write_table,
)
from torch import Tensor, nn
from torch.nn import functional as F

from maskgrpo_plugin.diffusion.remasking import remask

SETTINGS = [  # size, vocabulary, prompt, response, batch
    ("256x4", 126464, 128, 128, 6),
    ("512x8", 126464, 128, 128, 6),
]


def loss_of(log_probs: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    """Mean over masked tokens (N,) of the clipped surrogate (ε 0.2) with 0.01 of the k3 penalty."""
    ratio = (log_probs - old).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    difference = old - log_probs
    return (0.01 * (difference.exp() - difference - 1) - surrogate).mean()


def plain_log_probs(
    model: nn.Module, noisy: Tensor, tokens: Tensor, masked: Tensor, start: int, inputs: dict[str, Any]
) -> Tensor:
    """Log-probabilities of the masked response tokens by way of the logits of the canvas."""
    logits = model(noisy, **inputs).logits[:, start:]
    losses = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), tokens[:, start:].flatten(), reduction="none"
    )
    return -losses[masked[:, start:].flatten()]


def measure(setting: tuple, options: argparse.Namespace) -> list[str]:
    """One line of the table."""
    size, vocabulary, prompt, response, batch = setting
    device, dtype = device_of(options)
    model = make_model(size, vocabulary, device, dtype, attention=options.attention).train()
    if options.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if options.frozen_head:
        model.get_output_embeddings().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, vocabulary - 2, (batch, prompt + response), generator=generator).to(device)
    learned = torch.zeros_like(tokens, dtype=torch.bool)
    learned[:, prompt:] = True
    view = remask(
        tokens,
        learned,
        options.mask_ratio,
        "ar_like",
        seed=1,
        keys=torch.arange(batch, device=device),
        mask_token_id=model.config.mask_token_id,
    )
    advantages = torch.randn(batch, 1, generator=generator).to(device).expand_as(tokens)[view.masked]
    targets = tokens[view.masked]
    mask = padding_mask(batch, prompt, response).to(device) if options.mixed else None
    padded = {} if mask is None else mask_inputs(mask, packed=False)
    packed = {} if mask is None else mask_inputs(mask, packed=True)

    def ours() -> Tensor:
        return model(view.noisy, logits_positions=view.masked, target_ids=targets, **packed).log_probs

    def plain() -> Tensor:
        return plain_log_probs(model, view.noisy, tokens, view.masked, prompt, padded)

    def step(score) -> tuple[float, float]:
        log_probs = score()
        loss = loss_of(log_probs, old, advantages)
        loss.backward()
        gradients = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
        model.zero_grad(set_to_none=True)  # else the next peak is told from a level with these gradients
        return loss.item(), torch.stack(gradients).norm().item()

    with torch.no_grad():
        old = plain().float() + 0.1
        plain_seconds = side_by_side({"plain": plain, "ours": ours}, device, options.repeats)
    measured = side_by_side({"plain": lambda: step(plain), "ours": lambda: step(ours)}, device, options.repeats)
    a, b = measured["plain"], measured["ours"]
    difference = max(abs(x - y) / abs(x) for x, y in zip(a.result, b.result, strict=True))
    masked, used = int(view.masked.sum()), tokens.numel() if mask is None else int(mask.sum())
    arithmetic = 3 * forward_flops(size, vocabulary, used, prompt + response, masked)
    if options.frozen_head:
        arithmetic -= 2.0 * masked * SIZES[size][0] * vocabulary
    rate = arithmetic / b.seconds
    old_ratio = plain_seconds["plain"].seconds / plain_seconds["ours"].seconds
    return [
        size,
        f"{vocabulary}",
        f"{prompt}+{response}" if mask is None else f"≤{prompt}+{response}",
        f"{batch}",
        f"{masked}",
        f"{a.seconds:.2f}",
        f"{b.seconds:.2f}",
        f"{a.seconds / b.seconds:.2f}×",
        f"{old_ratio:.2f}×",
        f"{a.peak_mib:.0f}",
        f"{b.peak_mib:.0f}",
        f"{b.peak_mib / a.peak_mib:.0%}",
        f"{difference:.1e}",
        f"{rate / 1e12:.2f}",
        f"{rate / matrix_rate(device, dtype):.0%}",
    ]


def settings(options: argparse.Namespace) -> list[tuple]:
    """The settings that the command line asks for."""
    if options.grid:
        grid = itertools.product((256, 512, 1024), (1, 6), (32000, 126464))
        return [(options.size or "256x4", v, c // 2, c // 2, b) for c, b, v in grid]
    if options.size is None:
        return SETTINGS
    return [(options.size, options.vocabulary, options.canvas // 2, options.canvas // 2, options.batch)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_options(parser)
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--vocabulary", type=int, default=126464)
    parser.add_argument("--canvas", type=int, default=512, help="prompt and response, half each")
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--mask-ratio", type=float, default=0.8, help="share of the response that is masked")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, for both")
    parser.add_argument("--frozen-head", action="store_true", help="as under LoRA, for both")
    parser.add_argument("--mixed", action="store_true", help="prompts of 1/8 to all of their columns; ours packs them")
    parser.add_argument("--attention", default="sdpa", help="transformers' name: sdpa, flash_attention_2, eager")
    parser.add_argument("--grid", action="store_true", help="all canvases, batches and vocabularies")
    options = parser.parse_args()
    rows = [measure(setting, options) for setting in settings(options)]
    header = ["size", "vocabulary", "canvas", "batch", "masked", "plain s", "ours s", "update", "old/ref pass"]
    write_table([*header, "plain MiB", "ours MiB", "memory", "difference", "TFLOP/s", "of matrices"], rows)


if __name__ == "__main__":
    main()
