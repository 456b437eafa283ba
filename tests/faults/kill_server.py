"""Kill one of two rollout servers in the middle of a training, and show how the run ends.

    python tests/faults/kill_server.py runs/one_server --config quickstart quickstart_dir=runs/quickstart \
      actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=64

The overrides after the options are of the run, which goes to FOLDER. The exit code is 0 where the run kept the step's
completions, ended with exit code 1 and named the dead server; Linux alone.
"""

import argparse
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

from kill_and_resume import kill, logged, members, start

SERVER = b"ray::DiffusionServer"
TWO_SERVERS = ("trainer.n_gpus_per_node=2", "ray_kwargs.ray_init.num_gpus=2")
PATIENCE_S = 600.0
NAMED = re.compile(r"the rollout server \S+ died|a Ray actor of the run died .*DiffusionServer")


def servers(session: int) -> list[int]:
    """Processes of the run's rollout servers."""
    return [pid for pid in members(session) if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(SERVER)]


def main() -> int:
    """Run, kill one server some time after the first step, wait for the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the run is written; new")
    parser.add_argument("--config", default="quickstart", help="name of a config in configs/")
    parser.add_argument("--seed", type=int, default=0, help="of the moment and of the server")
    options, overrides = parser.parse_known_args()
    if options.folder.exists():
        parser.error(f"{options.folder} exists")
    folder, draw = options.folder.absolute(), random.Random(options.seed)

    run = start(folder, "run", options.config, [*TWO_SERVERS, *overrides])
    try:
        while 1 not in logged(folder, "run"):
            if run.poll() is not None:
                sys.exit(f"the run ended by itself, see {folder}/run.txt")
            time.sleep(0.05)
        wait = draw.uniform(0.0, logged(folder, "run")[1]["timing_s/step"])
        time.sleep(wait)
        found = servers(run.pid)
        if len(found) != 2:
            sys.exit(f"{len(found)} processes {SERVER.decode()} in place of 2, see {folder}/run.txt")
        os.kill(draw.choice(found), signal.SIGKILL)
        killed = time.monotonic()
        code = run.wait(timeout=PATIENCE_S)
    finally:
        kill(run)
    steps = logged(folder, "run")
    named = [line for line in (folder / "run.txt").read_text().splitlines() if NAMED.search(line)]
    lost = {step: row.get("reward/lost_samples", 0.0) for step, row in steps.items()}
    print(
        f"killed one of two servers {wait:.1f} s after step 1; exit code {code} {time.monotonic() - killed:.1f} s later"
    )
    print(f"steps {sorted(steps)}, lost completions {lost}")
    print("\n".join(named[-3:]) or "no line names the server")
    return int(code != 1 or not named or any(lost.values()))


if __name__ == "__main__":
    sys.exit(main())
