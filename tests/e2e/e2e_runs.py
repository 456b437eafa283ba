"""Whole runs of verl's entry point as processes of their own."""

import json
import os
import subprocess
from pathlib import Path

import forked_python

ROOT = Path(__file__).parents[2]
NO_DASHBOARD = "+ray_kwargs.ray_init.include_dashboard=false"  # seven processes that nothing here looks at
SMALL = [
    "data.train_batch_size=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.n=4",
    "trainer.test_freq=-1",
    "trainer.val_before_train=false",
]


def train(folder, run, config, *overrides, timeout=600, clean=True, entry=("verl.trainer.main_ppo", "--config-name")):
    """Run the entry point; returns the logged metrics by step. `clean`: its output, which is kept, may hold no
    traceback.
    """
    run.mkdir(parents=True, exist_ok=True)
    log = run / "log.jsonl"
    command = [*forked_python.command(), "-m", *entry, config]
    workers = f"+ray_kwargs.ray_init.runtime_env.py_executable='{forked_python.for_ray()}'"
    environment = os.environ | {"VERL_FILE_LOGGER_PATH": str(log), "HYDRA_FULL_ERROR": "1"}
    result = subprocess.run(
        [*command, f"hydra.run.dir={run}/hydra", NO_DASHBOARD, workers, *overrides],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    output = result.stdout + result.stderr
    (run / "output.txt").write_text(output)
    assert result.returncode == 0, output[-6000:]
    assert not clean or "Traceback" not in output, output[-6000:]
    return {row["step"]: row["data"] for row in map(json.loads, log.read_text().splitlines())}
