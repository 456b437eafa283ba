"""Throughput of the local sandbox: how fast programs are judged under each isolation that works here.

Usage: python benchmarks/sandbox.py [--programs 200] [--tests 3] [--concurrency 0]
"""

import argparse
import sys
import time

from maskgrpo_plugin.sandbox import SandboxConfig, run_batch
from maskgrpo_plugin.sandbox.local import detect_isolation

PROGRAM = """
def total(values, offset={offset}):
    result = offset
    for value in values:
        result += value
    return result
"""
KINDS = {
    "compared here": "assert total([1, 2, {n}]) == {sum}",
    "judged inside": "assert total([1, 2, {n}]) in ({sum},)",
}


def main() -> int:
    """Print a table; non-zero where a program got less than it earned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=200, help="number of programs")
    parser.add_argument("--tests", type=int, default=3, help="tests of each program")
    parser.add_argument("--concurrency", type=int, default=0, help="programs at once; 0: one for each core")
    options = parser.parse_args()

    row = "{:<12} {:<14} {:>9} {:>7} {:>10} {:>11} {:>9}\n"
    sys.stdout.write(row.format("isolation", "tests are", "programs", "tests", "seconds", "programs/s", "tests/s"))
    wrong = 0
    for isolation in ("bubblewrap", "nsjail", "namespaces"):
        config = SandboxConfig(isolation=isolation, concurrency=options.concurrency)
        try:
            detect_isolation(config)
        except RuntimeError:
            sys.stdout.write(row.format(isolation, "does not work here", "", "", "", "", "").rstrip() + "\n")
            continue
        for kind, statement in KINDS.items():
            programs = [PROGRAM.format(offset=0) for _ in range(options.programs)]
            tests = [[statement.format(n=n, sum=n + 3) for n in range(options.tests)] for _ in programs]
            started = time.perf_counter()
            reports = run_batch(programs, tests, config=config)
            seconds = time.perf_counter() - started
            wrong += sum(report.pass_rate != 1.0 for report in reports)
            rates = [f"{count / seconds:.1f}" for count in (options.programs, options.programs * options.tests)]
            sys.stdout.write(row.format(isolation, kind, options.programs, options.tests, f"{seconds:.2f}", *rates))
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
