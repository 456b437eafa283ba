"""A run of the generation command: jobs in batches, shown while they are denoised, written out, kept for the page."""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

from maskgrpo_plugin.diffusion.samplers import Sampler, option_names
from maskgrpo_plugin.diffusion.samplers.base import OnStep
from maskgrpo_plugin.generation.chat import Chat
from maskgrpo_plugin.generation.checkpoint import Checkpoint
from maskgrpo_plugin.generation.completions import Completion, Job, Planner, Writer
from maskgrpo_plugin.generation.live import LiveView
from maskgrpo_plugin.generation.options import DEFAULT_TRACE_STEPS
from maskgrpo_plugin.generation.output import ImageFolder, Output
from maskgrpo_plugin.generation.questions import Question
from maskgrpo_plugin.generation.recording import Recorder, all_of
from maskgrpo_plugin.generation.terminal import Screen, terminal_size
from maskgrpo_plugin.generation.trace import Trace
from maskgrpo_plugin.workers.rollout.batches import SamplerBatch


class Session:
    """What the command does with a checkpoint.

    Args:
        options: the command's.
        checkpoint: the model.
        sampler: with its options; None: the checkpoint is autoregressive.
        sampler_name: its name.
        length: tokens of a text; None: images are made.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        checkpoint: Checkpoint,
        sampler: Sampler | None,
        sampler_name: str,
        length: int | None,
    ):
        self.options, self.checkpoint = options, checkpoint
        self.planner = Planner(checkpoint, length, options.samples, options.seed)
        self.writer = Writer(checkpoint, sampler, options.temperature, length or 1, options.batch_size)
        self.folder = ImageFolder(options.output_dir) if length is None else None
        self.screen: Screen | None = None
        if sampler is not None and sys.stdout.isatty() and not options.json and not options.no_live:
            self.screen = Screen(sys.stdout, terminal_size)
        self.trace: Trace | None = None
        if sampler is not None and options.trace is not None:
            settings = {**_told(sampler_name, sampler), "seed": options.seed}
            self.trace = Trace(options.trace, checkpoint, settings, options.trace_steps or DEFAULT_TRACE_STEPS)
        self._recorder: Recorder | None = None

    def run(self, questions: Sequence[Question]) -> None:
        """Complete prompts; what has been made is in the page also where the command is stopped.

        Raises:
            OptionError: a prompt or a picture that cannot be used, before any weights are loaded.
        """
        jobs = [job for question in questions for job in self.planner.jobs(question)]
        output = Output(sys.stdout, as_json=self.options.json, headings=len(jobs) > 1, folder=self.folder)
        with self._written():
            for _ in self._complete(jobs, output):
                pass

    def chat(self) -> None:
        """Talk in the terminal, by the chat template; images are made one prompt after the other.

        Raises:
            OptionError: the picture that the chat is about cannot be used.
        """
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (lines can be edited)
        if self.options.image is not None:
            self.planner.pictures.read(self.options.image)
        self.checkpoint.model  # noqa: B018  (loaded before the first question)
        output = Output(sys.stdout, as_json=False, headings=False, folder=self.folder)

        def answer(question: Question) -> str | None:
            with self._written():
                made = list(self._complete(self.planner.jobs(question), output))
            return made[-1].text

        Chat(
            answer,
            read=lambda: input("> "),
            tell=_tell,
            picture=self.options.image,
            row=self.folder.next_row() if self.folder else 0,
        ).run()

    def _complete(self, jobs: Sequence[Job], output: Output) -> Iterator[Completion]:
        """Complete jobs and write them out, batch by batch."""
        samples: list[Completion] = []
        try:
            for completions in self.writer.complete(jobs, self._watch):
                if self.screen is not None:
                    self.screen.clear()
                output.add(completions)
                for n, completion in enumerate(completions):
                    if self.trace is not None and self._recorder is not None:
                        self.trace.add(completion, self._recorder.rows[n])
                    samples.append(completion)
                    if len(samples) == self.options.samples:
                        output.add_grid(samples)
                        samples = []
                    yield completion
        finally:
            if self.screen is not None:
                self.screen.clear()

    def _watch(self, jobs: Sequence[Job], batch: SamplerBatch) -> OnStep | None:
        observers: list[OnStep] = []
        if self.trace is not None:
            start = batch.tokens.shape[1] - len(jobs[0].request.response_mask)
            self._recorder = Recorder(batch.tokens, start)
            observers.append(self._recorder)
        if self.screen is not None:
            checkpoint = self.checkpoint
            live = LiveView(
                self.screen,
                jobs,
                tokenizer=checkpoint.tokenizer,
                mask_token_id=checkpoint.mask_token_id,
                stop_token_ids=checkpoint.stop_token_ids,
            )
            observers.append(live)
        return all_of(observers)

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Write the page after the block, and say how many files took the place of others."""
        before = self.folder.replaced if self.folder else 0
        try:
            yield
        finally:
            if self.trace is not None:
                self.trace.write()
            if self.folder is not None and self.folder.replaced > before:
                count = self.folder.replaced - before
                sys.stderr.write(f"{self.folder.path}: {count} files took the place of others\n")


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _told(name: str, sampler: Sampler) -> dict[str, Any]:
    """Name, steps, length and temperature of a sampler, and its options that differ from their defaults."""
    values, defaults = asdict(sampler), {each.name: each.default for each in fields(sampler)}
    own = {key: values[key] for key in option_names(name) if key == "steps" or values[key] != defaults[key]}
    return {"sampler": name, **own, "length": sampler.response_length, "temperature": sampler.temperature}
