"""Kill a training with all its processes at a random moment, resume it, and compare it with one that ran through.

    python tests/faults/kill_and_resume.py runs/killed --config quickstart quickstart_dir=runs/quickstart method=tracerl

The overrides after the options are of the run. Two runs go to FOLDER, `whole` and `killed`; Linux alone.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-6
CLOCKS = ("timing", "perf/", "actor/perf/", "rollout/")  # beginnings of metrics of speed and memory
CLOCK_ENDS = ("_latency_s", "_batch_size")


def start(folder: Path, log: str, config: str, overrides: list[str]) -> subprocess.Popen:
    """Start a run in a session of its own; its metrics and output go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-name", config]
    saving = ["trainer.save_freq=1", "trainer.resume_mode=auto", f"trainer.default_local_dir={folder}"]
    with (folder / f"{log}.txt").open("w") as output:
        return subprocess.Popen(
            [*command, f"hydra.run.dir={folder}/hydra", *saving, *overrides],
            cwd=ROOT,
            env=os.environ | {"VERL_FILE_LOGGER_PATH": str(folder / f"{log}.jsonl")},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def logged(folder: Path, log: str) -> dict[int, dict[str, float]]:
    """The metrics by step; a line that is being written is left out."""
    path = folder / f"{log}.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return {row["step"]: row["data"] for row in rows}


def members(session: int) -> list[int]:
    """Living processes of a session, whoever their parent is by now."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            state, _, _, its_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:  # no process, or one that has ended
            continue
        if int(its_session) == session and state not in "ZX":
            found.append(int(folder.name))
    return found


def kill(run: subprocess.Popen) -> None:
    """End all processes of a run, without a word to any of them."""
    while alive := members(run.pid):
        for process in alive:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
    run.wait()


def finish(run: subprocess.Popen, folder: Path, log: str) -> None:
    """Wait for the end of a run.

    Raises:
        SystemExit: it failed.
    """
    if run.wait():
        sys.exit(f"the run ended with exit code {run.returncode}, see {folder / log}.txt")


def is_clock(metric: str) -> bool:
    """Whether a metric depends on the machine's speed, as the size of the servers' batches does."""
    return metric.startswith(CLOCKS) or metric.endswith(CLOCK_ENDS)


def differences(expected: dict[str, float], found: dict[str, float]) -> dict[str, float]:
    """Metrics that are not the same to `TOLERANCE`, with how far they are off; a missing one is infinitely far."""
    off = {}
    for key in sorted(expected.keys() | found.keys()):
        if is_clock(key):
            continue
        distance = abs(expected.get(key, float("inf")) - found.get(key, float("-inf")))
        if not distance <= TOLERANCE:
            off[key] = distance
    return off


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The actor's parameters in a checkpoint of one rank."""
    state = torch.load(folder / "actor" / "model_world_size_1_rank_0.pt", weights_only=False)
    return {name: value.to_local() if hasattr(value, "to_local") else value for name, value in state.items()}


def farthest(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> float:
    """The largest difference of any parameter."""
    return max((expected[name] - found[name]).abs().max().item() for name in expected.keys() | found.keys())


def main() -> int:
    """Run, kill, resume, compare; the exit code is 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the two runs are written; new")
    parser.add_argument("--config", default="quickstart", help="name of a config in configs/")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the moment of the kill")
    options, overrides = parser.parse_known_args()
    if options.folder.exists():
        parser.error(f"{options.folder} exists")
    overrides = [*overrides, f"trainer.total_training_steps={options.steps}"]
    whole, killed = options.folder.absolute() / "whole", options.folder.absolute() / "killed"

    finish(start(whole, "run", options.config, overrides), whole, "run")
    expected = logged(whole, "run")
    moment = random.Random(options.seed)
    step = moment.randrange(1, options.steps)
    wait = moment.uniform(0.0, expected[step + 1]["timing_s/step"])

    run = start(killed, "first", options.config, overrides)
    while step not in logged(killed, "first"):
        if run.poll() is not None:
            sys.exit(f"the run ended by itself, see {killed}/first.txt")
        time.sleep(0.01)
    time.sleep(wait)
    kill(run)
    print(f"killed {wait:.1f} s after step {step}", flush=True)
    finish(start(killed, "resumed", options.config, overrides), killed, "resumed")
    resumed = logged(killed, "resumed")
    print(f"resumed, steps {sorted(resumed)}")

    found = logged(killed, "first") | resumed
    off = {f"step {n}, {key}": by for n in expected for key, by in differences(expected[n], found[n]).items()}
    count = sum(not is_clock(key) for key in expected[options.steps])
    print(f"{count} metrics of each step; different by more than {TOLERANCE:g}: {off or 'none'}")
    last, first = (weights(whole / f"global_step_{n}") for n in (options.steps, 1))
    distance = farthest(last, weights(killed / f"global_step_{options.steps}"))
    print(f"weights differ by {distance:g}; training moved them by {farthest(last, first):g} since step 1")
    return int(bool(off) or distance > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
