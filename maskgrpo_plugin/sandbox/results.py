"""What becomes of a program's tests."""

import enum
from dataclasses import dataclass


class Status(str, enum.Enum):
    """The outcome of one test.

    passed: it holds. failed: it does not. error: the program or the test raised, or the program ended early. timeout,
    memory, output_limit: the program used more than it may. sandbox_error: the sandbox did not do its work, which says
    nothing of the program.
    """

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT_LIMIT = "output_limit"
    SANDBOX_ERROR = "sandbox_error"


@dataclass(frozen=True)
class TestResult:
    """One test.

    Args:
        status: its outcome.
        duration: seconds that it took, without those in which it waited for a processor; 0.0 where it never ran.
        detail: for people: what was raised or exceeded. May hold text that the program chose.
    """

    __test__ = False  # not a class of tests, whatever its name begins with

    status: Status
    duration: float = 0.0
    detail: str = ""


@dataclass(frozen=True)
class TestReport:
    """All tests of one program, in their order."""

    __test__ = False

    results: tuple[TestResult, ...]

    @property
    def passed(self) -> int:
        """Number of tests that passed."""
        return self.count(Status.PASSED)

    @property
    def total(self) -> int:
        """Number of tests, those that did not run included."""
        return len(self.results)

    @property
    def statuses(self) -> tuple[Status, ...]:
        """The outcome of each test."""
        return tuple(result.status for result in self.results)

    @property
    def pass_rate(self) -> float:
        """passed / total, 0 to 1."""
        return self.passed / self.total if self.total else 0.0

    def count(self, status: Status) -> int:
        """Number of tests with this outcome."""
        return self.statuses.count(status)
