"""`maskgrpo`, and `python -m maskgrpo_plugin`: one command over those of the package."""

import sys
from typing import Annotated

import typer

from maskgrpo_cli.forwarding import COMMANDS, WRONG_USE, Forwarded, forward, is_config

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
TRAIN_EXAMPLES = (
    "train quickstart",
    "train llada_8b_gsm8k method=tracerl trainer.total_training_steps=100",
    "train my_configs/my_run.yaml",
)

app = typer.Typer(
    name="maskgrpo",
    help="Training of masked diffusion models by reinforcement learning, and what is around it.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def examples_text(examples: tuple[str, ...]) -> str:
    """The examples as lines of a help."""
    return "Examples:\n" + "".join(f"  maskgrpo {example}\n" for example in examples)


def help_lines(examples: tuple[str, ...]) -> str:
    """The examples as paragraphs, which Typer would join otherwise."""
    return "\n\n".join(["Examples:", *(f"maskgrpo {example}" for example in examples)])


def _add(name: str, command: Forwarded) -> None:
    def run(context: typer.Context) -> None:
        if any(argument in ("--help", "-h") for argument in context.args):
            sys.stdout.write(examples_text(command.examples) + "\n")
            sys.stdout.flush()
        raise typer.Exit(forward(name, context.args))

    app.command(name, help=command.summary, context_settings=PASS_ON, add_help_option=False)(run)


@app.command(
    "train",
    help="Train by reinforcement learning, with a readable screen and the whole output in a log. Overrides of the "
    "config follow its name; other arguments go to verl's command.",
    epilog=help_lines(TRAIN_EXAMPLES),
    context_settings=PASS_ON,
)
def _train(
    context: typer.Context,
    config: Annotated[str, typer.Argument(help="Name of a config, or the path of a YAML file.")],
) -> None:
    from maskgrpo_cli.train import train

    if not is_config(config):
        sys.stderr.write(f"error: {config!r} is no config; its name comes first, then options and overrides\n")
        raise typer.Exit(WRONG_USE)
    raise typer.Exit(train(config, context.args))


@app.command("methods", help="The published methods that `method=<name>` sets.", epilog=help_lines(("methods",)))
def _methods() -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from maskgrpo_cli.methods import read_methods
    from maskgrpo_cli.shipped import config_folder

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("method", "estimator", "loss", "arXiv"):
        table.add_column(column, no_wrap=True)
    table.add_column("what it is")
    for method in read_methods(config_folder() / "method"):
        table.add_row(method.name, method.estimator, method.loss, method.paper, method.description)
    terminal = sys.stdout.isatty()
    Console(width=None if terminal else 160, markup=False, highlight=False).print(table)


for _name, _command in COMMANDS.items():
    _add(_name, _command)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status of the subcommand, 2 for a wrong use."""
    try:
        app(arguments, prog_name="maskgrpo")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else WRONG_USE if ended.code else 0
    return 0
