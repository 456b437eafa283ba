"""The process that asks math-verify: reads one JSON question a line from stdin, answers one JSON line each.

It is run as a script and imports nothing of this package, so that it starts quickly. It ends with its stdin; where it
is still computing then, its own alarm ends it, and its memory is limited.
"""

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable

MEMORY_LIMIT_BYTES = 4 << 30
ALARM_AFTER_LIMIT_S = 5
LONGEST_CAUSE = 500


def equal(truth: str, answer: str) -> bool:
    """Whether math-verify takes `answer` for `truth`, both LaTeX without dollar signs or a box.

    What sympy raises on single expressions stays in math-verify and means "not equal": an answer must not be able to
    pass for a failure of the judge.
    """
    from math_verify import parse, verify

    gold, given = (parse(f"\\boxed{{{latex}}}", parsing_timeout=None) for latex in (truth, answer))
    return bool(verify(gold, given, timeout_seconds=None))


def serve(read_line: Callable[[], str], write_line: Callable[[str], object]) -> None:
    """Answer questions `{"truth", "answer", "time_limit_s"}` until there are no more.

    An answer is `{"equal"}`, which is null where memory or depth did not suffice; or `{"error"}`, the type and text of
    what math-verify failed with.
    """
    while line := read_line():
        question = json.loads(line)
        signal.alarm(int(question["time_limit_s"]) + ALARM_AFTER_LIMIT_S)
        reply: dict[str, object]
        try:
            reply = {"equal": equal(question["truth"], question["answer"])}
        except (MemoryError, RecursionError):
            reply = {"equal": None}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:LONGEST_CAUSE]}
        signal.alarm(0)
        write_line(json.dumps(reply) + "\n")


def main() -> None:
    """Say by `{"ready": true}` or `{"error": text}` whether math-verify is there, then serve."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not get among the answers
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        equal("x", "x")
    except ImportError as error:
        answers.write(json.dumps({"error": str(error)}) + "\n")
        return
    logging.disable()
    answers.write(json.dumps({"ready": True}) + "\n")
    serve(sys.stdin.readline, answers.write)


if __name__ == "__main__":
    main()
