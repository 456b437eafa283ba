"""Arithmetic rate of the rollout's forward pass against that of the device's fastest matrix product, in one run.

  python benchmarks/forward.py --compile                                           # on the CPU, small
  python benchmarks/forward.py --size 8b --batches 1 6 32 --compile --mixed        # on a GPU

A pass is the exact mode's: the whole canvas through the layers, the last queries and the head at half a block of 32.
With `--mixed` also a batch whose prompts fill 1/8 to all of half the canvas: with its padding masked (`padded`,
which flash attention does not take) and left out (`packed`), which is what the sampler does. TFLOP/s are of the rest.
"""

import argparse
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

COLUMNS = 16


def measure(options: argparse.Namespace, batch: int, attention: str, layout: str, rate: float) -> list[list[str]]:
    """Lines of the table: eager, and compiled where asked for."""
    device, dtype = device_of(options)
    model = make_model(options.size, options.vocabulary, device, dtype, attention=attention)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, options.vocabulary - 2, (batch, options.canvas), generator=generator).to(device)
    columns = torch.arange(options.canvas // 2, options.canvas // 2 + COLUMNS, device=device).expand(batch, -1)
    half = options.canvas // 2
    mask = None if layout == "full" else padding_mask(batch, half, options.canvas - half).to(device)
    extra = {} if mask is None else mask_inputs(mask, packed=layout == "packed")
    used = tokens.numel() if mask is None else int(mask.sum())

    @torch.no_grad()
    def run() -> Any:
        return model(tokens, logits_positions=columns, **extra).logits.shape

    lines = []
    for compiled in (False, True) if options.compile else (False,):
        if compiled:
            from maskgrpo_plugin.workers.rollout.server import compile_layers

            compile_layers(model)
        measured = side_by_side({"pass": run}, device, options.repeats)["pass"]
        arithmetic = forward_flops(options.size, options.vocabulary, used, options.canvas, columns.numel())
        lines.append(
            [
                options.size,
                f"{batch}×{options.canvas}",
                layout,
                attention,
                "yes" if compiled else "no",
                f"{1e3 * measured.seconds:.1f}",
                f"{measured.peak_mib:.0f}",
                f"{arithmetic / measured.seconds / 1e12:.3f}",
                f"{arithmetic / measured.seconds / rate:.0%}",
            ]
        )
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_options(parser)
    parser.add_argument("--size", choices=SIZES, default="512x8")
    parser.add_argument("--vocabulary", type=int, default=126464)
    parser.add_argument("--canvas", type=int, default=512)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 6])
    parser.add_argument("--attention", nargs="+", default=["sdpa"], help="transformers' names")
    parser.add_argument("--compile", action="store_true", help="also with compiled layers")
    parser.add_argument("--mixed", action="store_true", help="also prompts of mixed lengths, in the largest batch")
    options = parser.parse_args()
    device, dtype = device_of(options)
    rate = matrix_rate(device, dtype)
    layouts = [(batch, "full") for batch in options.batches]
    if options.mixed:
        layouts += [(max(options.batches), layout) for layout in ("padded", "packed")]
    rows = [
        line
        for attention in options.attention
        for batch, layout in layouts
        if layout != "padded" or "flash" not in attention
        for line in measure(options, batch, attention, layout, rate)
    ]
    rows.append(["matrix product", "", "", "", "", "", "", f"{rate / 1e12:.3f}", "100%"])
    write_table(["size", "batch", "rows", "attention", "compiled", "ms", "peak MiB", "TFLOP/s", "of matrices"], rows)


if __name__ == "__main__":
    main()
