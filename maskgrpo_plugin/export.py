"""`python -m maskgrpo_plugin.export`: a checkpoint of a run, or a LoRA adapter, as a folder in the published form.

Beside weights, config and tokenizer it has a model card, README.md, that says how the model was trained.
"""

import argparse
import logging
import sys
from pathlib import Path

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.evaluation.checkpoints import MARK, resolve_checkpoint
from maskgrpo_plugin.model_card import read_training, write_card

__all__ = ["check_target", "export"]


def export(model: str, output_dir: Path, base_model: str | None = None) -> None:
    """Write weights, config and tokenizer of a checkpoint, an adapter merged in, and a model card.

    Args:
        model: a folder of verl's checkpoints (the latest is taken), one `global_step_N`, or a PEFT adapter.
        output_dir: the folder to write, whole or not at all; what an earlier call left there is replaced.
        base_model: what an adapter goes onto; None: the base that it names.

    Raises:
        OptionError: `model` is no checkpoint, or in the published form already; or `output_dir` holds something else.
    """
    check_target("--output-dir", output_dir)
    if resolve_checkpoint(model, output_dir, base_model) != str(output_dir):
        raise OptionError("--model", model, "it is in the published form already")
    write_card(output_dir, read_training(model, base_model))


def check_target(key: str, folder: Path) -> None:
    """Raise OptionError, for the setting `key`, unless the folder is missing, empty, or of an earlier export."""
    if not folder.exists() or (folder / MARK).is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise OptionError(key, str(folder), "it holds something that no earlier export wrote")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0, or 2 where an option cannot be used."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder of checkpoints, one global_step_N, or an adapter")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--base-model", help="what an adapter goes onto; by default the base that it names")
    options = parser.parse_args(arguments)
    try:
        export(options.model, options.output_dir, options.base_model)
    except OptionError as error:
        sys.stderr.write(f"maskgrpo_plugin: {error}\n")
        return 2
    sys.stdout.write(f"{options.output_dir}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
