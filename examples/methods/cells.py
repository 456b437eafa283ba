"""The runs of the comparison: which there are, what each one changes, and what their lines of JSON say.

A cell is a task, a method and a seed. Tasks change the lengths of a config; methods are the files of configs/method,
and the two steps of MaskGRPO's ablation that are no file.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from maskgrpo_cli.shipped import config_folder
from maskgrpo_plugin.errors import OptionError, check_choice

SAMPLER = "actor_rollout_ref.rollout.sampler.options"
BLOCK = f"{SAMPLER}.block_length"


def lengths(prompt: int, response: int, block: int = 4) -> list[str]:
    """Overrides of the config: tokens of the prompt, of the response, and of a block of the sampler, which reveals one
    token per step, as in the quickstart.
    """
    return [
        f"data.max_prompt_length={prompt}",
        f"data.max_response_length={response}",
        f"{SAMPLER}.steps={response}",
        f"{BLOCK}={block}",
    ]


TASKS = {  # overrides of the config
    "sums": [],
    "countdown": lengths(21, 12),
    "sudoku": lengths(18, 20),
    "worked_2": lengths(26, 32, block=16),
    "worked": lengths(47, 64, block=16),
}
SEARCHED = "sums"  # the task whose learning rates all tasks take
RATES = (3e-5, 1e-4, 3e-4)  # learning rates of the search
BEYOND = {3e-5: 1e-5, 3e-4: 1e-3}  # what is tried too where the best of them is at an end
OF_IMAGES = ("maskgrpo_digits", "maskgrpo_image")
OF_BLOCKS = ("tracerl_block",)  # for block-causal models
NOT_TRUNCATED = "gamma=1e-6"  # γ is above 0
VARIANTS = {  # of a method, and what they change
    "maskgrpo_random": ("maskgrpo", ["remasking=random", NOT_TRUNCATED]),
    "maskgrpo_ar": ("maskgrpo", [NOT_TRUNCATED]),
}
ABLATION = {  # rows of the paper's ablation: our cell, the paper's GSM8K accuracy in per cent
    "diffu-GRPO": ("diffu_grpo", 79.8),
    "+ controlled randomness": ("maskgrpo_random", 80.4),
    "+ AR-like masks": ("maskgrpo_ar", 83.5),
    "+ truncation": ("maskgrpo", 84.7),
}


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        task: one of `TASKS`.
        method: see `methods`.
        seed: of the order of rows, the sampling and the masks.
        rate: learning rate.
        search: whether it is one of the learning-rate search, which holds out rows of the training data.
    """

    task: str
    method: str
    seed: int
    rate: float
    search: bool = False

    @property
    def name(self) -> str:
        """For a file: `sums-espo-0-0.0001`."""
        return f"{self.task}-{self.method}-{self.seed}-{self.rate:g}{'-search' if self.search else ''}"


def method_files() -> list[str]:
    """Names of the files in configs/method."""
    return sorted(file.stem for file in (config_folder() / "method").glob("*.yaml"))


def methods() -> list[str]:
    """The methods that are compared: those of texts and bidirectional models, and the variants."""
    return sorted({*method_files(), *VARIANTS} - {*OF_IMAGES, *OF_BLOCKS})


def overrides(method: str) -> list[str]:
    """Hydra's overrides that put a method over a task's; the sampler's blocks are the task's where its file has none.

    Raises:
        OptionError: an unknown method.
    """
    check_choice("--method", method, sorted({*method_files(), *VARIANTS}))
    base, changed = VARIANTS.get(method, (method, []))
    own = OmegaConf.select(OmegaConf.load(config_folder() / "method" / f"{base}.yaml"), BLOCK)
    blocks = [] if own is None else [f"{BLOCK}={own}"]
    return [f"method={base}", *blocks, *(f"algorithm.estimation.options.{option}" for option in changed)]


def read_lines(file: Path) -> dict[Cell, list[dict]]:
    """The evaluations of each cell in the order of their steps; of a step that was evaluated again, the last.

    Args:
        file: of JSON lines, which need not exist.

    Raises:
        OptionError: a line that is none of `train.py`'s.
    """
    found: dict[Cell, dict[int, dict]] = {}
    for number, line in enumerate(file.read_text().splitlines() if file.is_file() else [], start=1):
        try:
            row = json.loads(line)
            cell = Cell(*(row[key] for key in ("task", "method", "seed", "rate", "search")))
            found.setdefault(cell, {})[row["step"]] = row
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(f"{file}, line {number}", line[:40], f"a line of train.py; {error!r}") from None
    return {cell: [steps[n] for n in sorted(steps)] for cell, steps in found.items()}


def searched_rates(found: dict[Cell, list[dict]], steps: int) -> dict[str, float]:
    """Each method's learning rate: of those of its finished search the one with the best accuracy at the last step,
    the lower one of two that are equal. Methods whose search is not done are left out.

    Args:
        found: see `read_lines`.
        steps: of a cell of the search.
    """
    rates = {}
    for method in {cell.method for cell in found}:
        done = search_of(found, method, steps)
        if set(rates_of_search(done)) <= set(done):
            rates[method] = best(done)
    return rates


def search_of(found: dict[Cell, list[dict]], method: str, steps: int) -> dict[float, float]:
    """The accuracies of a method's search by their learning rates, of the cells that came to the last step."""
    cells = {c: rows[-1] for c, rows in found.items() if c.search and (c.task, c.method) == (SEARCHED, method)}
    return {cell.rate: row["accuracy"] for cell, row in cells.items() if row["step"] >= steps}


def best(done: dict[float, float]) -> float:
    """The learning rate of the highest accuracy, the lower one of two that are equal."""
    return max(done, key=lambda rate: (done[rate], -rate))


def rates_of_search(done: dict[float, float]) -> list[float]:
    """The learning rates to be tried: `RATES`, and one beyond them once the best of these is at an end.

    Args:
        done: see `search_of`.
    """
    if not set(RATES) <= set(done):
        return list(RATES)
    beyond = BEYOND.get(best({rate: done[rate] for rate in RATES}))
    return [*RATES, *([] if beyond is None else [beyond])]


def is_done(found: dict[Cell, list[dict]], cell: Cell, steps: int) -> bool:
    """Whether a cell has an evaluation at its last step."""
    return any(row["step"] >= steps for row in found.get(cell, []))


def missing(found: dict[Cell, list[dict]], cells: Iterable[Cell], steps: int) -> list[Cell]:
    """The cells that are not done, in their order."""
    return [cell for cell in cells if not is_done(found, cell, steps)]


def search_cells(found: dict[Cell, list[dict]], names: Sequence[str], seed: int, steps: int) -> list[Cell]:
    """The cells of the search as far as they are known, all methods at one rate before the next rate.

    Args:
        found: see `read_lines`.
        names: of methods.
        seed: of the search.
        steps: of a cell of the search.
    """
    rates = {name: rates_of_search(search_of(found, name, steps)) for name in names}
    order = [*RATES, *BEYOND.values()]
    return [Cell(SEARCHED, name, seed, rate, search=True) for rate in order for name in names if rate in rates[name]]


def end_with(error: OptionError) -> int:
    """Write an error's line; returns the exit status 2."""
    sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
    return 2
