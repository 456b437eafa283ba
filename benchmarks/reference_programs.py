"""How many reference programs of MBPP and HumanEval pass their own tests in the sandbox, and how long that takes.

Usage: python benchmarks/reference_programs.py [--mbpp mbpp.jsonl] [--humaneval HumanEval.jsonl.gz] [--isolation auto]
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskgrpo_plugin.data.programs import humaneval_row, mbpp_tests
from maskgrpo_plugin.data.records import read_file
from maskgrpo_plugin.rewards.text.scorers.code import parse_ground_truth
from maskgrpo_plugin.sandbox import SandboxConfig, run_batch


def mbpp(record: dict[str, Any]) -> tuple[Any, str, list[Any]]:
    """Name, program and tests of one record."""
    tests, preamble = mbpp_tests(record)
    return record["task_id"], f"{preamble}\n{record['code']}", list(tests)


def humaneval(record: dict[str, Any]) -> tuple[Any, str, list[Any]]:
    """Name, program and tests of one record."""
    row = humaneval_row(record, "validation", 0)
    program = f"{row['extra_info']['preamble']}\n{record['prompt']}{record['canonical_solution']}"
    return record["task_id"], program, list(parse_ground_truth(row["reward_model"]["ground_truth"]))


def measure(name: str, path: Path, read: Callable[[dict[str, Any]], Any], config: SandboxConfig) -> int:
    """Print one line for a file and one for each program that does not pass; returns the number of those."""
    problems = [read(record) for _, record in read_file(path)]
    started = time.perf_counter()
    reports = run_batch([program for _, program, _ in problems], [tests for _, _, tests in problems], config=config)
    seconds = time.perf_counter() - started
    failed = [(key, report) for (key, _, _), report in zip(problems, reports, strict=True) if report.pass_rate < 1]
    total = sum(report.total for report in reports)
    sys.stdout.write(
        f"{name}: {len(problems) - len(failed)} of {len(problems)} programs pass, {total} tests, {seconds:.0f} s, "
        f"{len(problems) / seconds:.1f} programs/s\n"
    )
    for key, report in failed:
        outcomes = [(result.status.value, result.detail) for result in report.results]
        sys.stdout.write(f"  {key}: {outcomes}\n")
    return len(failed)


def main() -> int:
    """Measure the files that are given; non-zero where a program does not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbpp", type=Path, help="MBPP's mbpp.jsonl")
    parser.add_argument("--humaneval", type=Path, help="HumanEval.jsonl.gz")
    parser.add_argument("--isolation", default="auto", help="bubblewrap, nsjail, namespaces or auto")
    parser.add_argument("--judging", default="outside", help="outside or inside")
    parser.add_argument("--timeout-s", type=float, default=5.0, help="seconds for one test")
    options = parser.parse_args()
    config = SandboxConfig(isolation=options.isolation, judging=options.judging, timeout_s=options.timeout_s)
    failed = 0
    for name, path, read in (("MBPP", options.mbpp, mbpp), ("HumanEval", options.humaneval, humaneval)):
        if path:
            failed += measure(name, path, read, config)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
