"""Programs under test run elsewhere: three providers behind one interface, verdicts that programs cannot forge."""

from maskgrpo_plugin.sandbox.config import SandboxConfig
from maskgrpo_plugin.sandbox.pairs import tests_of
from maskgrpo_plugin.sandbox.results import Status, TestReport, TestResult
from maskgrpo_plugin.sandbox.runner import run_batch, run_tests, score_program

__all__ = ["SandboxConfig", "Status", "TestReport", "TestResult", "run_batch", "run_tests", "score_program", "tests_of"]
