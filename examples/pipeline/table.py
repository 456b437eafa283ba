"""Print the accuracy of each stage of the pipeline, from what `maskgrpo_plugin.evaluate` wrote.

python examples/pipeline/table.py runs/pipeline/evaluation
"""

import json
import sys
from pathlib import Path

STAGES = {"initial": "random weights", "model": "after SFT", "checkpoints": "after RL"}


def rows(folder: Path) -> list[tuple[str, float, float, float]]:
    """Stage, accuracy, and its 95 % interval, of the summaries below `folder`."""
    found = []
    for name, stage in STAGES.items():
        (summary,) = json.loads((folder / name / "summary.json").read_text())
        found.append((stage, summary["accuracy"], summary["accuracy_low"], summary["accuracy_high"]))
    return found


def main(arguments: list[str]) -> int:
    """Print the table of the folder that is named; returns 0."""
    lines = ["| stage | greedy accuracy | 95 % interval |", "| --- | --- | --- |"]
    lines += [
        f"| {stage} | {accuracy:.3f} | {low:.3f} to {high:.3f} |"
        for stage, accuracy, low, high in rows(Path(arguments[0]))
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
