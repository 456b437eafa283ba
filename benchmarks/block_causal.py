"""Rollout of a block-causal model with its exact cache, against recomputing all before the block at every step.

  python benchmarks/block_causal.py                                  # canvas 1,024 in blocks of 32, batch 8, on the CPU
  python benchmarks/block_causal.py --canvas 512 --block 4 --steps 4 --batch 32
  python benchmarks/block_causal.py --size 1.7b --batch 64           # on a GPU
  python benchmarks/block_causal.py --train                          # forward and backward: two copies against one
  python benchmarks/block_causal.py --train --size 1.7b --attention flex_attention   # on a GPU; compare with sdpa
  python benchmarks/block_causal.py --masks --batch 4 --canvas 2784 --block 4   # of two copies, by count

Random weights, prompts of a quarter of the canvas with lengths that differ, temperature 0. Tokens are compared; the
cache's memory is printed.
"""

import argparse
from typing import Any

import torch
from common import add_device_options, device_of, side_by_side, write_table

from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.models.sdar import SDARConfig, SDARForCausalLM
from maskgrpo_plugin.models.tiles import TILE
from maskgrpo_plugin.models.two_copies import TwoCopies

SIZES = {  # width, layers, heads, key and value heads, feed-forward width
    "256x4": (256, 4, 4, 2, 1024),
    "512x8": (512, 8, 8, 4, 2048),
    "1.7b": (2048, 28, 16, 8, 6144),
}


def make_model(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> SDARForCausalLM:
    """An SDAR model with random weights; its mask token is the last of the vocabulary."""
    width, layers, heads, key_heads, inner = SIZES[options.size]
    config = SDARConfig(
        vocab_size=options.vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=width // heads,
        intermediate_size=inner,
        max_position_embeddings=4096,
        initializer_range=0.02 if width >= 1024 else 0.06,
        mask_token_id=options.vocabulary - 1,
        block_size=options.block,
        attn_implementation=options.attention,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return SDARForCausalLM(config).to(dtype).eval()


def measure(options: argparse.Namespace) -> list[str]:
    """One line of the table."""
    device, dtype = device_of(options)
    model, mask = make_model(options, device, dtype), options.vocabulary - 1
    generator = torch.Generator().manual_seed(1)
    longest = options.canvas // 4
    prompts = torch.randint(0, mask, (options.batch, longest), generator=generator).to(device)
    lengths = torch.randint(longest // 2, longest + 1, (options.batch, 1), generator=generator)
    attended = (torch.arange(longest) >= longest - lengths).long().to(device)
    attended[0] = 1
    common = {"response_length": options.canvas - longest, "steps_per_block": options.steps, "temperature": 0.0}

    def run(cache: str) -> Any:
        sampler = build_sampler("block_causal", cache=cache, **common)
        return sampler.generate(model, prompts, attended, mask_token_id=mask)

    measured = side_by_side(
        {cache: lambda cache=cache: run(cache) for cache in ("none", "exact")}, device, options.repeats
    )
    whole, exact = measured["none"], measured["exact"]
    decoder = build_sampler("block_causal", **common).decoder(model, mask_token_id=mask)
    masks = torch.full((options.batch, options.canvas - longest), mask, device=device)
    with torch.no_grad():
        decoder.join(
            torch.cat([prompts, masks], 1), torch.cat([attended, torch.ones_like(masks)], 1), [None] * options.batch
        )
    cache_mib = sum(cache.bytes for cache in decoder.passes.caches) / 2**20
    equal = (whole.result.sequences == exact.result.sequences).float().mean().item()
    return [
        options.size,
        f"{options.canvas}",
        f"{options.batch}",
        f"{options.block}/{options.steps}",
        f"{whole.seconds:.2f}",
        f"{exact.seconds:.2f}",
        f"{whole.seconds / exact.seconds:.1f}×",
        f"{whole.peak_mib:.0f}",
        f"{exact.peak_mib:.0f}",
        f"{cache_mib:.1f}",
        f"{equal:.4f}",
    ]


def measure_training(options: argparse.Namespace) -> list[str]:
    """One line of the table of `--train`: log-probabilities of half of each row's tokens, forward and backward."""
    device, dtype = device_of(options)
    model, mask = make_model(options, device, dtype).train(), options.vocabulary - 1
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(0, mask, (options.batch, options.canvas), generator=generator).to(device)
    hidden = (torch.rand(clean.shape, generator=generator) < 0.5).to(device)
    noisy = clean.masked_fill(hidden, mask)

    def run(**more: Any) -> None:
        model.zero_grad()
        model(noisy, logits_positions=hidden, target_ids=clean[hidden], **more).log_probs.sum().backward()

    measured = side_by_side({"one": run, "two": lambda: run(clean_ids=clean)}, device, options.repeats)
    one, two = measured["one"], measured["two"]
    return [
        options.size,
        f"{options.batch} × {options.canvas}",
        f"{options.block}",
        f"{one.seconds:.2f}",
        f"{two.seconds:.2f}",
        f"{two.seconds / one.seconds:.2f}×",
        f"{one.peak_mib:.0f}",
        f"{two.peak_mib:.0f}",
    ]


def count_masks(options: argparse.Namespace) -> list[str]:
    """One line of the table of `--masks`: what a pass of two copies holds as a mask, and how much of it is computed."""
    copies = TwoCopies.of(Packing.from_lengths([options.canvas] * options.batch, "cpu"), options.block)
    tiles = copies.layout(None, tiled=True).tiles
    assert tiles is not None
    parts = [part for part in (*tiles.as_tuple(), *copies.spans()) if isinstance(part, torch.Tensor)]
    whole = options.batch * (2 * options.canvas) ** 2
    computed = (tiles.kv_num_blocks.sum() + tiles.full_kv_num_blocks.sum()).item() * TILE**2
    return [
        f"{options.batch} × {options.canvas:,}",
        f"{options.block}",
        f"{whole / 2**20:.0f}",
        f"{sum(part.numel() * part.element_size() for part in parts) / 2**20:.1f}",
        f"{computed / whole:.0%}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="256x4")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--canvas", type=int, default=1024, help="tokens of the longest prompt and its response")
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--steps", type=int, default=32, help="steps of a block")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--attention", choices=["auto", "sdpa", "flex_attention", "eager"], default="auto")
    add_device_options(parser)
    parser.set_defaults(repeats=1)
    parser.add_argument("--train", action="store_true", help="compare training passes in place of rollouts")
    parser.add_argument("--masks", action="store_true", help="count the masks of training passes, and run nothing")
    options = parser.parse_args()
    if options.masks:
        heads = ["rows × tokens", "block", "SDPA's mask MiB", "tiles and spans MiB", "computed"]
        write_table(heads, [count_masks(options)])
        return
    if options.train:
        heads = ["size", "tokens", "block", "one copy s", "two copies s", "slower", "one MiB", "two MiB"]
        write_table(heads, [measure_training(options)])
        return
    heads = ["size", "canvas", "batch", "block/steps", "recomputed s", "cached s", "faster"]
    heads += ["recomputed MiB", "cached MiB", "cache MiB", "equal tokens"]
    write_table(heads, [measure(options)])


if __name__ == "__main__":
    main()
