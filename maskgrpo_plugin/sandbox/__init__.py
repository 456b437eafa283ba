"""Code rewards run code away from us: three providers behind one interface, and verdicts that programs cannot forge."""

from maskgrpo_plugin.sandbox.config import SandboxConfig
from maskgrpo_plugin.sandbox.results import Status, TestReport, TestResult
from maskgrpo_plugin.sandbox.runner import (
    active_isolation,
    outcomes,
    run_batch,
    run_batch_async,
    run_tests,
    run_tests_async,
    score_program,
)

__all__ = [
    "SandboxConfig",
    "Status",
    "TestReport",
    "TestResult",
    "active_isolation",
    "outcomes",
    "run_batch",
    "run_batch_async",
    "run_tests",
    "run_tests_async",
    "score_program",
]
