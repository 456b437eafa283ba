"""Bytes and seconds of a weight sync from a training rank to its rollout server under LoRA: merged, or the adapter.

  python benchmarks/weight_sync.py --sizes 256x4 512x8 --rank 128

The rank and the server are processes of their own, with verl's own `update_weights` between them. The first sync of the
adapter also sends the base; a later one is the fastest of `--repeats`. `forward s` is the server's pass over a canvas.
"""

import argparse
import asyncio
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch
import verl.trainer
from common import DTYPES, SIZES, make_model, write_table
from hydra import compose, initialize_config_dir
from verl.utils.device import get_device_name

import maskgrpo_plugin.registration  # noqa: F401
from maskgrpo_plugin.quickstart import make_tokenizer
from maskgrpo_plugin.workers.actor import MaskGRPOWorker
from maskgrpo_plugin.workers.rollout.adapter import server_name
from maskgrpo_plugin.workers.rollout.server import DiffusionServer, server_actor

ROOT = Path(__file__).parents[1]


def compose_config(folder: str, rank: int, merge: bool, dtype: str) -> Any:
    """The rank's and the server's config for the model in `folder`."""
    verl_configs = Path(verl.trainer.__file__).parent / "config"
    fsdp = "actor_rollout_ref.actor.fsdp_config"
    precision = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    overrides = [
        f"hydra.searchpath=[file://{verl_configs}]",
        f"actor_rollout_ref.model.path={folder}",
        f"+actor_rollout_ref.model.override_config.mask_token_id={make_tokenizer().mask_token_id}",
        f"actor_rollout_ref.model.lora_rank={rank}",
        f"actor_rollout_ref.model.lora_alpha={rank}",
        f"actor_rollout_ref.model.lora.merge={merge}",
        f"actor_rollout_ref.rollout.dtype={dtype}",
        f"{fsdp}.model_dtype={precision}",
        "actor_rollout_ref.actor.preflight=false",
    ]
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        return compose("quickstart", overrides=overrides).actor_rollout_ref


def forward_seconds(server: Any, canvas: int, repeats: int) -> float:
    """Seconds of the server's fastest forward pass over one canvas of `canvas` tokens, all logits of one position."""
    tokens = torch.arange(9, 9 + canvas).unsqueeze(0) % 20
    columns = torch.zeros(1, 1, dtype=torch.long, device=server.device)
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            started = time.perf_counter()
            server.model(tokens.to(server.device), logits_positions=columns).logits.cpu()
            times.append(time.perf_counter() - started)
    return min(times[1:])


def measure(folder: str, options: argparse.Namespace, merge: bool) -> tuple[int, float, float, float]:
    """Bytes of a later sync, and seconds of the first sync, of a later one, and of a forward pass."""
    config = compose_config(folder, options.rank, merge, options.dtype)
    worker = MaskGRPOWorker(config=config, role="actor_rollout")
    worker.init_model()
    server = server_actor(DiffusionServer).options(
        name=server_name("masked_diffusion", 0), max_concurrency=8, num_gpus=int(get_device_name() != "cpu")
    )
    handle = server.remote(config.rollout, config.model, 0)
    ray.get(handle.__ray_ready__.remote())

    def sync(step: int) -> float:
        started = time.perf_counter()
        asyncio.run(worker.update_weights(global_steps=step, mode="naive"))
        return time.perf_counter() - started

    first = sync(0)
    later = min(sync(step) for step in range(1, options.repeats + 1))
    weights, _ = worker.actor.engine.get_per_tensor_param(base_sync_done=True)
    sent = sum(tensor.nbytes for _, tensor in weights)
    seconds = ray.get(handle.__ray_call__.remote(forward_seconds, options.canvas, options.repeats))
    ray.kill(handle)
    return sent, first, later, seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["256x4", "512x8"])
    parser.add_argument("--rank", type=int, default=128, help="of the LoRA adapter")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--canvas", type=int, default=512, help="tokens of the forward pass")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the actor's and the server's weights")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    rows = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            make_model(size, options.vocabulary, torch.device("cpu"), DTYPES[options.dtype]).save_pretrained(folder)
            make_tokenizer().save_pretrained(folder)
            for name, merge in (("merged", True), ("adapter", False)):
                sent, first, later, seconds = measure(folder, options, merge)
                rows.append([size, name, f"{sent / 2**20:.1f}", f"{first:.3f}", f"{later:.3f}", f"{seconds:.3f}"])
    ray.shutdown()
    write_table(["size", "sync", "MiB", "first s", "later s", "forward s"], rows)


if __name__ == "__main__":
    main()
