"""Arithmetic rate of the rollout's forward pass against that of the device's fastest matrix product, in one run.

  python benchmarks/forward.py                                             # on the CPU, small
  python benchmarks/forward.py --size 8b --batches 1 6 32 --compile        # on a GPU

A pass is the exact mode's: the whole canvas through the layers, the last queries and the head at half a block of 32.
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
    matrix_rate,
    side_by_side,
    write_table,
)

COLUMNS = 16


def measure(options: argparse.Namespace, batch: int, attention: str, compiled: bool, rate: float) -> list[str]:
    """One line of the table."""
    device, dtype = device_of(options)
    model = make_model(options.size, options.vocabulary, device, dtype, attention=attention)
    if compiled:
        from maskgrpo_plugin.workers.rollout.server import compile_layers

        compile_layers(model)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, options.vocabulary - 2, (batch, options.canvas), generator=generator).to(device)
    columns = torch.arange(options.canvas // 2, options.canvas // 2 + COLUMNS, device=device).expand(batch, -1)

    @torch.no_grad()
    def run() -> Any:
        return model(tokens, logits_positions=columns).logits.shape

    measured = side_by_side({"pass": run}, device, options.repeats)["pass"]
    arithmetic = forward_flops(options.size, options.vocabulary, tokens.numel(), options.canvas, columns.numel())
    return [
        options.size,
        f"{batch}×{options.canvas}",
        attention,
        "yes" if compiled else "no",
        f"{1e3 * measured.seconds:.1f}",
        f"{measured.peak_mib:.0f}",
        f"{arithmetic / measured.seconds / 1e12:.2f}",
        f"{arithmetic / measured.seconds / rate:.0%}",
    ]


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
    options = parser.parse_args()
    device, dtype = device_of(options)
    rate = matrix_rate(device, dtype)
    rows = [
        measure(options, batch, attention, compiled, rate)
        for attention in options.attention
        for compiled in ([False, True] if options.compile else [False])
        for batch in options.batches
    ]
    rows.append(["matrix product", "", "", "", "", "", f"{rate / 1e12:.2f}", "100%"])
    write_table(["size", "batch", "attention", "compiled", "ms", "peak MiB", "TFLOP/s", "of matrices"], rows)


if __name__ == "__main__":
    main()
