"""Learning under each setting of `canvas`, in one process without Ray: the quickstart's model, rows and settings.

  python benchmarks/canvas.py --model runs/quickstart/model --data runs/quickstart/data --seeds 0 --output canvas.jsonl

A step is that of configs/quickstart.yaml by examples/methods/harness.py. Accuracy is greedy, on the validation rows.
Every line of the output is one evaluation; the table comes at the end.
"""

import argparse
import json
import sys
from pathlib import Path

from common import write_table

from maskgrpo_plugin.diffusion.estimators import CANVASES

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "methods"))
from harness import Run, batches, places, read_config, read_rows


def main() -> None:
    """Train every canvas for every seed, and print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the start model; {seed} stands for the seed")
    parser.add_argument("--data", required=True, help="folder with train.parquet and validation.parquet; likewise")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--canvases", nargs="+", choices=CANVASES, default=["masked", "visible", "full"])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--every", type=int, default=16, help="steps between evaluations")
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines; runs that it holds are kept")
    options = parser.parse_args()
    lines = options.output.read_text().splitlines() if options.output.is_file() else []
    found = {(r["seed"], r["canvas"], r["step"]): r["accuracy"] for r in map(json.loads, lines)}
    for seed in options.seeds:
        data = Path(options.data.format(seed=seed))
        train, validation = read_rows(data, "train"), read_rows(data, "validation")
        for canvas in options.canvases:
            if (seed, canvas, options.steps) in found:
                continue
            run = make_run(options.model.format(seed=seed), data, canvas, seed)
            numbered = batches(len(train), run.config.data.train_batch_size, seed)
            for step, numbers in zip(range(options.steps + 1), numbered, strict=False):
                if step % options.every == 0:
                    found[seed, canvas, step] = run.accuracy(validation)
                    row = {"seed": seed, "canvas": canvas, "step": step, "accuracy": found[seed, canvas, step]}
                    with options.output.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                if step < options.steps:
                    run.train([train[n] for n in numbers], numbers)
    steps = range(0, options.steps + 1, options.every)
    table = [
        [canvas, str(seed), *(f"{found[seed, canvas, step]:.3f}" for step in steps)]
        for canvas in options.canvases
        for seed in options.seeds
    ]
    write_table(["canvas", "seed", *(f"step {step}" for step in steps)], table)


def make_run(model: str, data: Path, canvas: str, seed: int) -> Run:
    """The quickstart's run with a canvas."""
    overrides = [
        *places(model, data),
        f"quickstart_seed={seed}",
        f"algorithm.estimation.canvas={canvas}",
    ]
    return Run(read_config("quickstart", overrides), seed=seed)


if __name__ == "__main__":
    main()
