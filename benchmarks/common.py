"""What the benchmarks share: models with random weights, times and peak memory side by side, tables."""

import argparse
import ctypes
import gc
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from verl.utils.device import get_device_name

import maskgrpo_plugin  # noqa: F401  (makes transformers know LLaDA)
from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.models.llada import LLaDAConfig, LLaDAModelLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIZES = {  # width, layers, heads, feed-forward width
    "256x4": (256, 4, 4, 1024),
    "512x8": (512, 8, 8, 2048),
    "1024x16": (1024, 16, 16, 4096),
    "8b": (4096, 32, 32, 12288),
}


@dataclass
class Measured:
    """One implementation's seconds in its fastest run, and its peak memory above what it began with, in MiB."""

    seconds: float
    peak_mib: float
    result: Any


def make_model(
    size: str, vocabulary: int, device: torch.device, dtype: torch.dtype, seed: int = 0, attention: str = "sdpa"
) -> LLaDAModelLM:
    """A LLaDA with random weights, in evaluation mode; `size` is a key of `SIZES`, mask and end token the last ids,
    `attention` transformers' name of the implementation.
    """
    width, layers, heads, inner = SIZES[size]
    config = LLaDAConfig(
        d_model=width,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=heads,
        mlp_hidden_size=inner,
        vocab_size=vocabulary,
        embedding_size=vocabulary,
        mask_token_id=vocabulary - 1,
        eos_token_id=vocabulary - 2,
        pad_token_id=vocabulary - 2,
        max_sequence_length=4096,
        init_std=0.02 if width >= 1024 else 0.06,
        attn_implementation=attention,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = LLaDAModelLM(config)
        finally:
            torch.set_default_dtype(before)
    return model.eval()


def forward_flops(size: str, vocabulary: int, tokens: int, canvas: int, head_positions: int) -> float:
    """Floating-point operations of one forward pass: 2 for each weight and token in the layers, 4 · canvas · width for
    each token's attention in a layer, and 2 for each weight and position of the head.
    """
    width, layers, _, inner = SIZES[size]
    per_token = 2 * (4 * width * width + 3 * width * inner) + 4 * canvas * width
    return float(tokens * layers * per_token + 2 * head_positions * width * vocabulary)


def matrix_rate(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """Operations a second of the fastest of some square matrix products on this device."""
    best = 0.0
    for size in (4096, 8192, 16384) if device.type == "cuda" else (1024, 2048):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = side_by_side({"product": lambda a=a, b=b: a @ b}, device, repeats)["product"].seconds
        best = max(best, 2 * size**3 / seconds)
    return best


class PeakMemory:
    """Peak memory of a block in MiB above the level at its start: of the device, or of the process on the CPU."""

    def __init__(self, device: torch.device):
        self.device = device
        self.peak_mib = 0.0

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return self
        import psutil

        gc.collect()
        if sys.platform == "linux":  # freed memory that the allocator still holds would hide what is allocated next
            ctypes.CDLL(None).malloc_trim(0)
        self._process = psutil.Process()
        self._before = self._top = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._top = max(self._top, self._process.memory_info().rss)

    def __exit__(self, *_: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            self._top = torch.cuda.max_memory_allocated()
        else:
            self._done.set()
            self._thread.join()
        self.peak_mib = max(self._top - self._before, 0) / 2**20


def side_by_side(
    implementations: dict[str, Callable[[], Any]], device: torch.device, repeats: int
) -> dict[str, Measured]:
    """Run implementations in turn, `repeats` times each after one run that warms up and whose memory is measured; with
    0 repeats the time is that run's.
    """
    measured, times = {}, {name: [] for name in implementations}
    for name, run in implementations.items():
        started = time.perf_counter()
        with PeakMemory(device) as memory:
            result = run()
        measured[name] = Measured(time.perf_counter() - started, memory.peak_mib, result)
    for _ in range(repeats):
        for name, run in implementations.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - started)
    for name, seconds in times.items():
        measured[name].seconds = min(seconds, default=measured[name].seconds)
    return measured


def padding_mask(batch: int, prompt: int, response: int) -> torch.Tensor:
    """The mask (B, L) of prompts that fill 1/8 to all of `prompt` columns, padded on the left, and full responses."""
    lengths = torch.linspace(prompt // 8, prompt, batch).long().unsqueeze(1)
    return (torch.arange(prompt + response) >= prompt - lengths).long()


def mask_inputs(mask: torch.Tensor, *, packed: bool) -> dict[str, Any]:
    """What a model takes for a mask (B, L): with padding left out, or masked in the attention."""
    if packed:
        return {"attention_mask": mask, "packing": Packing.of(mask)}
    seen = mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
    return {"attention_mask": seen, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def free_bytes(device: torch.device) -> int:
    """Memory that nothing uses: of the device, or of the host for the CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    import psutil

    return psutil.virtual_memory().available


def write_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table in Markdown to standard output."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, ["-" * w for w in widths], *rows]:
        cells = (str(cell).ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("| " + " | ".join(cells) + " |\n")
    sys.stdout.flush()


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Options that all benchmarks have."""
    parser.add_argument("--device", default=get_device_name(), help="default: verl's platform")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on the CPU, else bfloat16")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs; the fastest is shown")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")


def device_of(options: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of `add_device_options`."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    return device, DTYPES[options.dtype or ("float32" if device.type == "cpu" else "bfloat16")]
