"""The commands of the package that `maskgrpo` hands its arguments to, unread."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Forwarded(NamedTuple):
    """A command of the package.

    Attributes:
        module: its module, which has `main(arguments) -> int`.
        summary: what it does, one line.
        examples: command lines, without `maskgrpo`.
    """

    module: str
    summary: str
    examples: tuple[str, ...]


COMMANDS = {
    "doctor": Forwarded("maskgrpo_plugin.doctor", "What is registered, installed and usable here.", ("doctor",)),
    "prepare": Forwarded(
        "maskgrpo_plugin.data.prepare",
        "Data for training; also captions, image-prompts, image-questions and quickstart.",
        (
            "prepare gsm8k --output-dir data/gsm8k",
            "prepare chat --train s1K.parquet --answer-form reasoning --output-dir data/s1k",
            "prepare quickstart --output-dir runs/quickstart",
        ),
    ),
    "sft": Forwarded(
        "maskgrpo_plugin.sft",
        "Supervised training in one process; on several GPUs by torchrun -m maskgrpo_plugin.sft.",
        ("sft sft_quickstart", "sft my_configs/my_sft.yaml optim.lr=1e-5"),
    ),
    "evaluate": Forwarded(
        "maskgrpo_plugin.evaluate",
        "Accuracy of a checkpoint on tasks, or images and their scores.",
        (
            "evaluate --model runs/quickstart/checkpoints --data runs/quickstart/data/validation.parquet "
            "--lengths 8 --steps 8 --block-length 4 --output-dir runs/quickstart/evaluation",
            "evaluate --model GSAI-ML/LLaDA-8B-Instruct --tasks gsm8k math --output-dir runs/llada",
        ),
    ),
    "generate": Forwarded(
        "maskgrpo_plugin.generate",
        "Texts and images of a checkpoint, or a chat, shown while they are denoised.",
        (
            "generate --model runs/quickstart/model --prompt 47+35= --length 8 --block-length 4",
            "generate --model GSAI-ML/LLaDA-8B-Instruct",
        ),
    ),
    "plot": Forwarded(
        "maskgrpo_plugin.learning_curve",
        "Curves of one or several runs as CSV and PNG.",
        ("plot runs/quickstart/checkpoints/metrics.jsonl --output runs/quickstart/curves",),
    ),
    "report": Forwarded(
        "maskgrpo_plugin.report",
        "One HTML page of one or several runs: curves, samples, images, configs.",
        ("report runs/quickstart/checkpoints --output report.html",),
    ),
    "export": Forwarded(
        "maskgrpo_plugin.export",
        "A checkpoint as a folder in the published form, with a model card.",
        ("export --model runs/quickstart/checkpoints --output-dir my_model",),
    ),
}
# first arguments of `maskgrpo prepare` that have a module of their own
PREPARE = {
    "captions": "maskgrpo_plugin.data.captions",
    "image-prompts": "maskgrpo_plugin.data.image_prompts",
    "image-questions": "maskgrpo_plugin.data.image_questions",
    "quickstart": "maskgrpo_plugin.quickstart",
}
WRONG_USE = 2


def forward(name: str, arguments: Sequence[str]) -> int:
    """Run a command of the package with the arguments as they are.

    Returns:
        its exit status; 2, with one line, where this installation does not have it.
    """
    module, rest = COMMANDS[name].module, list(arguments)
    if name == "prepare" and rest and rest[0] in PREPARE:
        name, module, rest = f"{name} {rest[0]}", PREPARE[rest[0]], rest[1:]
    if name == "sft" and rest and is_config(rest[0]):
        rest = [*config_arguments(rest[0]), *rest[1:]]
    sys.argv = [f"maskgrpo {name}", *rest]  # what the command's own help calls it
    try:
        command = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        sys.stderr.write(f"error: this installation has no {module}, which `maskgrpo {name}` runs\n")
        return WRONG_USE
    return int(command.main(rest) or 0)


def is_config(argument: str) -> bool:
    """Whether the first argument names a config, and is neither an option nor an override of Hydra."""
    return not argument.startswith(("-", "+", "~")) and "=" not in argument


def config_arguments(config: str) -> list[str]:
    """Hydra's arguments for a config: its name, or the path of a YAML file.

    `my/run.yaml` gives `--config-dir my --config-name run`.
    """
    path = Path(config)
    if path.suffix not in (".yaml", ".yml"):
        return ["--config-name", config]
    return ["--config-dir", str(path.absolute().parent), "--config-name", path.stem]
