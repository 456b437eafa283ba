"""A whole training step split into its stages, by verl's own clock, over 1, 2 and 4 ranks.

  python benchmarks/step.py --config quickstart --folder runs/quickstart [hydra overrides …]

Each run is `python -m verl.trainer.main_ppo` with the config and overrides. Seconds are medians over the steps after
the first; `share` is of the step with the first number of ranks. On the CPU the ranks share the cores, so that more of
them show what they cost.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import write_table

ROOT = Path(__file__).parents[1]
STAGES = {
    "rollout and rewards": "timing_s/gen",
    "old log-probabilities": "timing_s/old_log_prob",
    "reference log-probabilities": "timing_s/ref",
    "advantages": "timing_s/adv",
    "updates": "timing_s/update_actor",
    "weight sync": "timing_s/update_weights",
    "step": "timing_s/step",
}


def run(config: str, folder: str | None, ranks: int, steps: int, overrides: list[str]) -> list[dict[str, float]]:
    """Metrics of the steps after the first of one run.

    Raises:
        RuntimeError: the run ended with an error; the message is the end of its output.
    """
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log.jsonl"
        command = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-name", config]
        options = [
            *([] if folder is None else [f"{config.removesuffix('_ar')}_dir={folder}"]),
            f"trainer.n_gpus_per_node={ranks}",
            f"trainer.total_training_steps={steps}",
            "trainer.val_before_train=false",
            "trainer.test_freq=-1",
            "trainer.save_freq=-1",
            "trainer.resume_mode=disable",
            "trainer.logger=[console, file]",
            f"trainer.default_local_dir={scratch}/run",
            f"hydra.run.dir={scratch}/hydra",
            f"ray_kwargs.ray_init.num_cpus={16 + 8 * ranks}",
            f"++ray_kwargs.ray_init.num_gpus={ranks}",
        ]
        environment = os.environ | {"VERL_FILE_LOGGER_PATH": str(log)}
        ended = subprocess.run(
            [*command, *options, *overrides], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        if ended.returncode:
            raise RuntimeError(f"{ranks} ranks:\n{(ended.stdout + ended.stderr)[-3000:]}")
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [row["data"] for row in rows if row["step"] > 1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="quickstart", help="name of a config")
    parser.add_argument("--folder", help="models and data of a config with a key <config>_dir")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=8)
    options, overrides = parser.parse_known_args()
    folder = options.folder and str(Path(options.folder).resolve())
    found = {ranks: run(options.config, folder, ranks, options.steps, overrides) for ranks in options.ranks}
    seconds = {
        ranks: {key: statistics.median(row.get(key, 0.0) for row in rows) for key in STAGES.values()}
        for ranks, rows in found.items()
    }
    first = seconds[options.ranks[0]]
    header = ["stage", *(f"{ranks} rank{'s' * (ranks > 1)}, s" for ranks in options.ranks), "share"]
    table = [
        [name, *(f"{seconds[ranks][key]:.2f}" for ranks in options.ranks), f"{first[key] / first['timing_s/step']:.0%}"]
        for name, key in STAGES.items()
    ]
    write_table(header, table)


if __name__ == "__main__":
    main()
