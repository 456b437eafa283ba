"""What the providers have in common: a job, and the small interface by which one is run."""

import abc
import functools
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from maskgrpo_plugin.sandbox.config import SandboxConfig
from maskgrpo_plugin.sandbox.inside.codec import INPUT_LIMIT, CodecError, from_frame, to_frame

START_UP_S = 10.0
# The modules of `inside`, each after those that it imports.
_MODULES = (
    *("codec", "confinement", "outcomes", "usage", "channel", "exceptions", "mirror", "operations"),
    *("remote", "program_side", "judge_side", "namespaces", "work", "supervisor", "entry"),
)


class SandboxFailure(Exception):
    """The sandbox did not do its work: an outage, a malformed answer, a jail that would not start."""


@dataclass(frozen=True)
class Job:
    """A program and what its tests need to run.

    Args:
        program: source text.
        tests: for each test, what the sandbox gets (see judging.Plan).
        kinds: for each test, what the sandbox does with it (see judging.Plan).
    """

    program: str
    tests: tuple[str, ...]
    kinds: tuple[str, ...]


class Sandbox(abc.ABC):
    """Runs programs away from this process.

    Args:
        config: its settings.
    """

    def __init__(self, config: SandboxConfig):
        self.config = config

    @abc.abstractmethod
    async def run(self, jobs: Sequence[Job]) -> list[list[Any] | SandboxFailure]:
        """Run jobs, at most `config.workers` at once, always on the same event loop.

        Returns:
            for each job the outcomes of its tests in order, fewer where the sandbox broke off, or why it did not run.
            Nothing is raised for a job.
        """

    @abc.abstractmethod
    def describe(self) -> str:
        """The isolation that is active, in words.

        Raises:
            RuntimeError: nothing isolates, and the configuration does not allow to run unisolated.
        """


@functools.cache
def inside_sources() -> dict[str, str]:
    """The text of each module that runs inside a sandbox, in the order in which they can be run."""
    folder = importlib.resources.files("maskgrpo_plugin.sandbox.inside")
    return {name: folder.joinpath(f"{name}.py").read_text(encoding="utf-8") for name in _MODULES}


def to_input(job: Job, config: SandboxConfig) -> bytes:
    """What a sandbox's supervisor reads (see inside/supervisor.py).

    Raises:
        SandboxFailure: a program or a test is too long.
    """
    limits = {
        "timeout_s": config.timeout_s,
        "memory_mb": config.memory_mb,
        "processes": config.processes,
        "file_mb": config.file_mb,
        "output_kb": config.output_kb,
    }
    header = {
        "program": job.program,
        "kinds": list(job.kinds),
        "limits": limits,
        "total_timeout_s": config.total_timeout_s,
        "paths": list(config.python_path) if config.provider == "local" else [],
    }
    try:
        frames = [to_frame(header, INPUT_LIMIT)]
        frames += [to_frame({"test": test}, INPUT_LIMIT) for test in job.tests]
    except CodecError as error:
        raise SandboxFailure(str(error)) from None
    return b"".join(frames)


def from_output(data: bytes | bytearray) -> list[Any]:
    """The outcomes that a supervisor wrote; what follows the last whole one is left out.

    An outcome that cannot be read is an error of its test: nothing that a program sends is an outage of the sandbox.
    """
    outcomes: list[Any] = []
    rest = memoryview(data)
    while len(rest) >= 4 and len(rest) >= (end := 4 + int.from_bytes(rest[:4], "big")):
        try:
            found = from_frame(bytes(rest[:end]), INPUT_LIMIT)
        except CodecError:
            found = None
        outcomes.append(found[0] if found else {"status": "error", "detail": "an outcome that cannot be read"})
        rest = rest[end:]
    return outcomes
