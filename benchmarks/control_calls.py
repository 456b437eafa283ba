"""Seconds of a control call to a rollout server, and of its answers, while more requests wait than Ray lets in at once.

  python benchmarks/control_calls.py --requests 2000

Generation is paused, as between two weight syncs, while the requests come; then a control call is made, and generation
resumed.
"""

import argparse
import tempfile
import time

import ray
import torch
from common import SIZES, make_model, write_table
from weight_sync import compose_config, make_tokenizer

from maskgrpo_plugin.workers.rollout.server import DiffusionServer, server_actor

LET_IN = 1000  # verl's max_concurrency


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="256x4")
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer()
        make_model(options.size, len(tokenizer), torch.device("cpu"), torch.float32).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        config = compose_config(folder, 0, False, "float32")
        config.rollout.load_format = "auto"
        actor = server_actor(DiffusionServer).options(max_concurrency=LET_IN)
        server = actor.remote(config.rollout, config.model, 0)
        ray.get(server.abort_all_requests.remote())
        ask = {"prompt_ids": [1, 10, 11, 12], "sampling_params": {"temperature": 1.0}}
        asked = [server.generate.remote(request_id=str(n), **ask) for n in range(options.requests)]
        time.sleep(5)
        started = time.perf_counter()
        ray.get(server.pop_metrics.remote(), timeout=60)
        called = time.perf_counter()
        ray.get(server.resume_generation.remote(), timeout=60)
        answered = len(ray.get(asked))
        ended = time.perf_counter()
    ray.shutdown()
    row = [str(options.requests), f"{called - started:.3f}", str(answered), f"{ended - called:.1f}"]
    write_table(["waiting", "control call s", "answered", "after resuming s"], [row])


if __name__ == "__main__":
    main()
