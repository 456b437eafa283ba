"""Stands for verl's entry point: `fake_run.py FOLDER KIND` behaves like a run of that kind, in a second."""

import json
import os
import signal
import sys
import time
from pathlib import Path

folder, kind = Path(sys.argv[1]), sys.argv[2]
metrics = folder / "metrics.jsonl"


def say(text):
    print(text, flush=True)


def row(step, data):
    with metrics.open("ab") as file:
        file.write((json.dumps({"step": step, "data": data}) + "\n").encode())


def train(step, reward):
    timing = {"timing_s/gen": 1.2, "timing_s/update_actor": 0.8, "timing_s/step": 2.5, "perf/total_num_tokens": 500}
    row(step, {"critic/score/mean": reward, "reward/acc": reward, "actor/kl_loss": 0.0125, **timing})


say("UserWarning: noise of another package")
if kind == "refused":
    say("maskgrpo_plugin: optim.lr=-1 is not usable; allowed: numbers more than 0")
    sys.exit(2)
if kind == "broken":
    raise ValueError("before anything is known")

stale = metrics.stat() if metrics.exists() else None
facts = {
    "name": "fake",
    "model": "some/model",
    "model_type": "masked_diffusion",
    "train_rows": 4000,
    "validation_rows": None,
    "prompts": 16,
    "completions": 8,
    "steps": 3,
    "folder": str(folder / "run"),
    "metrics": str(metrics),
    "metrics_before": [stale.st_ino, stale.st_size, stale.st_mtime_ns] if stale else None,
    "added": ["trainer.logger=[console,file]"],
}
told = Path(os.environ["MASKGRPO_RUN_FACTS"])
told.with_suffix(".tmp").write_text(json.dumps(facts))
told.with_suffix(".tmp").rename(told)
say("maskgrpo:phase: starting Ray")
time.sleep(0.6)
metrics.write_bytes(b"")
for worker in (1, 2):
    say(f"\x1b[36m(TaskRunnerV1 pid={worker})\x1b[0m maskgrpo:warning: {worker} of 8 rewards failed at step {worker}")
say("(TaskRunnerV1 pid=1) maskgrpo:warning: the disk is\x1b[31m nearly full")
for _ in range(500):
    say("(WorkerDict pid=3) noise")
row(0, {"val-core/sums/acc/mean@1": 0.25, "val-aux/sums/score/mean@1": 0.25})
train(1, 0.5)
train(2, 0.625)
time.sleep(0.5)
if kind == "crash":
    say("(TaskRunnerV1 pid=1) Traceback (most recent call last):")
    say('(TaskRunnerV1 pid=1)   File "other.py", line 1, in worker')
    say("(TaskRunnerV1 pid=1) KeyError: 'of a worker'")
    say("Error executing job with overrides: ['a=b']")
    say("Traceback (most recent call last):")
    say('  File "main_ppo.py", line 7, in main')
    say("ray.exceptions.RayTaskError(RuntimeError): ray::TaskRunnerV1.run()")
    say("RuntimeError: step 2: 9 of 16 completions are lost")
    say("")
    say("Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.")
    sys.exit(1)
if kind == "hangs":
    say("Traceback (most recent call last):")
    say("RuntimeError: of a run that does not end")
if kind in ("waits", "hangs", "interrupted"):

    def stop(number, frame):
        say("cleaned up")
        if kind == "interrupted":  # as Hydra ends verl's command while it waits for a Ray task
            say("Traceback (most recent call last):")
            say("KeyboardInterrupt")
            sys.exit(1)
        sys.exit(130)

    signal.signal(signal.SIGINT, stop)
    (folder / "waiting").touch()
    time.sleep(60)
row(3, {"val-core/sums/acc/mean@1": 0.75})
train(3, 0.75)
(folder / "run" / "global_step_3").mkdir(parents=True)
