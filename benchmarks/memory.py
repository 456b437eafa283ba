"""Peak memory of one inner update under LoRA, counted allocation by allocation on the CPU, against a prediction.

  python benchmarks/memory.py --size 8b --batches 1                # takes 20 GB of host memory and minutes

The update runs as the engine calls it: gradient checkpointing, bfloat16, 81 % of the response masked. Counted is the
most bytes that torch's profiler saw at one time beside the weights. Predicted is the larger of what the ends of the
backward pass need: at first a state for each layer and the head's logits, at last the adapter's gradients and what one
layer keeps.
"""

import argparse

import torch
from common import SIZES, make_model, write_table
from peft import LoraConfig, get_peft_model
from torch.profiler import ProfilerActivity, profile
from update import loss_of

CHUNK = 512  # masked positions of the head at a time
KEPT_LOGITS = 512 * 2**20  # bytes


def peak_bytes(run) -> int:
    """Most bytes that `run` had allocated at one time on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = profiled.profiler.kineto_results.events()
    total = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def update_peak(options: argparse.Namespace, batch: int) -> int:
    """Peak of the forward and backward pass."""
    base = make_model(options.size, options.vocabulary, torch.device("cpu"), torch.bfloat16)
    settings = LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules="all-linear")
    model = get_peft_model(base.train(), settings, autocast_adapter_dtype=False)
    model.enable_input_require_grads()
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, options.vocabulary - 2, (batch, options.canvas), generator=generator)
    masked = torch.rand(tokens.shape, generator=generator) < 0.81
    masked[:, : options.canvas // 2] = False
    targets = tokens[masked]

    def run() -> None:
        log_probs = model(tokens, logits_positions=masked, target_ids=targets).log_probs
        loss_of(log_probs, log_probs.detach() + 0.1, torch.ones_like(log_probs)).backward()

    return peak_bytes(run)


def predicted_bytes(options: argparse.Namespace, batch: int) -> float:
    """The larger of two sums: states between layers and the head; the adapter's gradients and one layer, which keeps 10
    widths and 4 feed-forward widths a token.
    """
    width, layers, _, inner = SIZES[options.size]
    tokens = batch * options.canvas
    masked = 0.81 * tokens / 2
    states = layers * tokens * width * 2
    layer = tokens * (10 * width + 4 * inner) * 2
    logits = min(masked * options.vocabulary * 2, KEPT_LOGITS)
    head = logits + 2 * min(masked, CHUNK) * options.vocabulary * 4
    adapter = 2 * options.rank * layers * (8 * width + 3 * (width + inner))
    return max(states + head, adapter + layer)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1024x16")
    parser.add_argument("--vocabulary", type=int, default=126464)
    parser.add_argument("--canvas", type=int, default=512)
    parser.add_argument("--batches", type=int, nargs="+", default=[2])
    parser.add_argument("--rank", type=int, default=128, help="of the LoRA adapter")
    options = parser.parse_args()
    rows = []
    for batch in options.batches:
        counted, predicted = update_peak(options, batch), predicted_bytes(options, batch)
        canvas = 2 * batch * options.canvas * options.vocabulary
        sizes = (f"{value / 2**20:.0f}" for value in (predicted, counted, canvas))
        rows.append([options.size, f"{batch}×{options.canvas}", *sizes])
    write_table(["size", "batch", "predicted MiB", "counted MiB", "logits of the canvas MiB"], rows)


if __name__ == "__main__":
    main()
