"""Runs tests from any thread or event loop: one sandbox for a configuration, on an event loop of its own."""

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from maskgrpo_plugin.sandbox.base import Job, Sandbox, SandboxFailure
from maskgrpo_plugin.sandbox.config import SandboxConfig
from maskgrpo_plugin.sandbox.judging import Plan, Test, judge, plan
from maskgrpo_plugin.sandbox.pairs import tests_of
from maskgrpo_plugin.sandbox.results import Status, TestReport, TestResult

logger = logging.getLogger(__name__)


@dataclass
class _Shared:
    """What one process keeps: a thread with an event loop, and sandboxes by configuration."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    pid: int = field(default_factory=os.getpid)
    lock: threading.Lock = field(default_factory=threading.Lock)
    sandboxes: dict[SandboxConfig, Sandbox | Exception] = field(default_factory=dict)


_shared: _Shared | None = None
_shared_lock = threading.Lock()


def run_tests(program: str, tests: Sequence[Test], *, config: SandboxConfig | None = None) -> TestReport:
    """Run a program's tests away from this process. Blocks; for any thread but an event loop's.

    Args:
        program: Python source.
        tests: each Python statements, which pass if they run through and what they assert holds, or a pair of input
            and output (see pairs.read_pair).
        config: the sandbox's settings, or None for the defaults.

    Returns:
        the outcome of each test; where the sandbox fails, tests end as sandbox_error, and nothing is raised.

    Raises:
        ValueError: `tests` is empty or holds something else.
        RuntimeError: nothing isolates here, and the configuration does not allow to run unisolated.
    """
    return run_batch([program], [tests], config=config)[0]


def run_batch(
    programs: Sequence[str], tests: Sequence[Sequence[Test]], *, config: SandboxConfig | None = None
) -> list[TestReport]:
    """`run_tests` for many programs, `config.workers` at once; `tests` holds the tests of each."""
    settings = config or SandboxConfig()
    return _submit(_run(programs, _plans(programs, tests, settings.judging), settings)).result()


def score_program(program: str, tests: Sequence[Test], config: SandboxConfig | None = None) -> dict[str, float]:
    """Score a program by its tests.

    Args, raises: as `run_tests`.

    Returns:
        `pass_rate` 0 to 1; `acc` 1.0 where all tests pass, else 0.0; `tests`, `tests_passed`, and how many ended as
        `tests_timeout` and `tests_sandbox_error`.
    """
    report = run_tests(program, tests, config=config)
    return {
        "pass_rate": report.pass_rate,
        "acc": float(report.passed == report.total),
        "tests": float(report.total),
        "tests_passed": float(report.passed),
        "tests_timeout": float(report.count(Status.TIMEOUT)),
        "tests_sandbox_error": float(report.count(Status.SANDBOX_ERROR)),
    }


def _plans(programs: Sequence[str], tests: Sequence[Sequence[Test]], judging: str) -> list[list[Plan]]:
    if len(programs) != len(tests):
        raise ValueError(f"{len(programs)} programs with {len(tests)} lists of tests")
    return [[plan(test, judging) for test in tests_of(own)] for own in tests]


async def _run(programs: Sequence[str], plans: list[list[Plan]], config: SandboxConfig) -> list[TestReport]:
    shared = _get_shared()
    sandbox = await asyncio.get_running_loop().run_in_executor(None, _sandbox, shared, config)
    jobs = [
        Job(str(program), tuple(p.content for p in own), tuple(p.kind for p in own))
        for program, own in zip(programs, plans, strict=True)
    ]
    results = await sandbox.run(jobs)
    reports = [_report(own, result) for own, result in zip(plans, results, strict=True)]
    for report, result in zip(reports, results, strict=True):
        if isinstance(result, SandboxFailure):
            logger.warning("the sandbox failed, and %d tests with it: %s", report.total, result)
    return reports


def _report(plans: list[Plan], result: list[Any] | SandboxFailure) -> TestReport:
    if isinstance(result, SandboxFailure):
        return TestReport(tuple(TestResult(Status.SANDBOX_ERROR, detail=str(result)[:500]) for _ in plans))
    given = result[: len(plans)] + [None] * (len(plans) - len(result))
    return TestReport(tuple(judge(own, outcome) for own, outcome in zip(plans, given, strict=True)))


def _get_shared() -> _Shared:
    """This process's state; a forked child gets its own."""
    global _shared
    with _shared_lock:
        if _shared is None or _shared.pid != os.getpid():
            _shared = _Shared()
            threading.Thread(target=_shared.loop.run_forever, name="sandbox-loop", daemon=True).start()
        return _shared


def _submit(work: Coroutine[Any, Any, list[TestReport]]) -> Any:
    return asyncio.run_coroutine_threadsafe(work, _get_shared().loop)


def _sandbox(shared: _Shared, config: SandboxConfig) -> Sandbox:
    """The sandbox of a configuration, made once; what it raised then it raises again."""
    with shared.lock:
        if config not in shared.sandboxes:
            try:
                shared.sandboxes[config] = _make(config)
            except (ValueError, RuntimeError) as error:
                shared.sandboxes[config] = error
        found = shared.sandboxes[config]
    if isinstance(found, Exception):
        raise found
    return found


def _make(config: SandboxConfig) -> Sandbox:
    if config.provider == "local":
        from maskgrpo_plugin.sandbox.local import LocalSandbox

        return LocalSandbox(config)
    from maskgrpo_plugin.sandbox import services

    if config.provider == "sandbox_fusion":
        return services.FusionSandbox(config)
    return services.RouterSandbox(config) if config.url else services.E2BSandbox(config)
