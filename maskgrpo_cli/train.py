"""`maskgrpo train`: verl's entry point as a child process, whose output goes to a log, and a screen of its progress."""

import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskgrpo_cli.child import Child
from maskgrpo_cli.forwarding import config_arguments
from maskgrpo_cli.metrics import MetricsFile, Row, duration, facts_lines, is_training, step_parts, validation_text
from maskgrpo_cli.screen import Screen
from maskgrpo_cli.signals import FACTS_VARIABLE

POLL_SECONDS = 0.25
ENTRY = ("-m", "verl.trainer.main_ppo")
# with these verl's command prints something and trains nothing, or trains many runs
OWN_OUTPUT = (
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--hydra-help",
    "--resolve",
    "--multirun",
    "-m",
    "--shell-completion",
    "-sc",
)


def train(config: str, overrides: Sequence[str]) -> int:
    """Train a config.

    Args:
        config: name, or path of a YAML file.
        overrides: Hydra's, and other arguments of verl's command.

    Returns:
        the exit status of verl's command.
    """
    command = [sys.executable, *ENTRY, *config_arguments(config), *overrides]
    if any(argument.split("=")[0] in OWN_OUTPUT for argument in overrides):
        return subprocess.call(command)
    return watch(command, Screen(sys.stdout))


def watch(command: Sequence[str], screen: Screen) -> int:
    """Run a command that trains, and show how it goes.

    Returns:
        its exit status; 130 after Ctrl-C.
    """
    with tempfile.TemporaryDirectory(prefix="maskgrpo_") as scratch:
        facts_file = Path(scratch) / "facts.json"
        screen.line(shlex.join(["python", *command[1:]]), "dim")
        child = Child(command, {FACTS_VARIABLE: str(facts_file), "PYTHONUNBUFFERED": "1"})
        progress = Progress(screen, child, facts_file)
        with child.signals_passed_on():
            status = None
            while status is None:
                status = child.wait(POLL_SECONDS)
                progress.look()
        screen.close()
        progress.end(status)
    return status


class Progress:
    """What the screen knows of a run, from its facts, its metrics and its messages.

    Args:
        screen: where it is shown.
        child: the run.
        facts_file: to which the run writes what it is.
    """

    def __init__(self, screen: Screen, child: Child, facts_file: Path):
        self.screen, self.child, self.facts_file = screen, child, facts_file
        self.facts: dict[str, Any] = {}
        self.metrics: MetricsFile | None = None
        self.started = time.monotonic()
        self.first: tuple[int, float] | None = None  # first step that was seen, and when
        self.step = 0
        self.validations: list[str] = []

    def look(self) -> None:
        """Show what is new."""
        if not self.facts and self.facts_file.is_file():
            self._begin(json.loads(self.facts_file.read_text("utf-8")))
        while not self.child.messages.empty():
            kind, text = self.child.messages.get()
            if kind == "warning":
                self.screen.warning(text)
            elif self.first is None:
                self.screen.line(text)
            else:
                self.screen.phase(text)
        for row in self.metrics.read() if self.metrics else ():
            self._row(row)

    def end(self, status: int) -> None:
        """Say how the run ended.

        Args:
            status: its exit status.
        """
        took = duration(time.monotonic() - self.started)
        if status == 0:
            results = " → ".join(dict.fromkeys([*self.validations[:1], *self.validations[-1:]]))
            self.screen.line(f"done after {took}" + (f"; validation: {results}" if results else ""), "green", last=True)
            self._places()
            return
        at = f" at step {self.step + 1}" if self.first else ""
        if self.child.signalled is not None or status in (130, 143):
            if self.child.failed:  # it had failed, and was slow to end
                self.screen.error(self.child.failed)
            self.screen.line(f"stopped{at} after {took}", "yellow", last=True)
        else:
            self.screen.error(self.child.error())
            self.screen.line(f"the run ended with status {status}{at} after {took}", "red", last=True)
        if self.facts or status != 2:
            self._places()
        else:
            self.child.log.unlink(missing_ok=True)  # a refusal, which has been shown whole

    def _begin(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.child.keep_log_in(Path(facts["folder"]))
        self.metrics = MetricsFile(Path(facts["metrics"]), facts["metrics_before"])
        for line in facts_lines(facts, self.child.log):
            self.screen.line(line)

    def _row(self, row: Row) -> None:
        if text := validation_text(row.data):
            self.validations.append(text)
            self.screen.line(f"validation at step {row.step}: {text}", "cyan")
        if not is_training(row):
            return
        now, total = time.monotonic(), self.facts.get("steps")
        self.step = row.step
        self.first = self.first or (row.step, now)
        parts = step_parts(row.data)
        if total and row.step < total:
            parts["left"] = duration(self._seconds_per_step(row, now) * (total - row.step))
        self.screen.step(f"step {row.step}/{total or '?'}", parts, last=row.step == total)

    def _seconds_per_step(self, row: Row, now: float) -> float:
        """The mean since the first step that was seen, validations and checkpoints among them."""
        first, since = self.first or (row.step, now)
        return (now - since) / (row.step - first) if row.step > first else row.data.get("timing_s/step", 0.0)

    def _places(self) -> None:
        if self.facts and any(Path(self.facts["folder"]).glob("global_step_*")):
            self.screen.line(f"checkpoints: {self.facts['folder']}", last=True)
        self.screen.line(f"the whole output: {self.child.log}", last=True)
