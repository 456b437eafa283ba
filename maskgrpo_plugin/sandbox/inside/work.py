"""What a test's processes do: load the program and evaluate or serve it, or judge it by the test's statements."""

from __future__ import annotations

import builtins
import gc
import os
import sys

from .calls import JudgeSide, ProgramGone, ProgramSide, describe_exception
from .codec import INPUT_LIMIT, CodecError, encode, from_frame, to_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .confinement import Limits

MESSAGE_ROOM = 4096
# Modules that a test may use without importing them.
_USUAL_MODULES = ("math", "re", "collections", "itertools", "functools", "random", "string", "datetime", "decimal")


def serve_program(job: int, judge: int) -> None:
    """Load the program and serve the judge's calls."""
    content = _read_job(job)
    namespace, error = _load(content["program"], content["paths"])
    side = ProgramSide(judge, namespace)
    side.channel.reply({"raised": describe_exception(error)} if error else {"ready": True})
    side.channel.serve()


def evaluate(job: int, outcome: int, limits: Limits) -> None:
    """Load the program, evaluate the test's expression and send its value."""
    content = _read_job(job)
    namespace, error = _load(content["program"], content["paths"])
    try:
        if error is not None:
            raise error
        value = eval(compile(content["expression"], "<test>", "eval"), namespace)
        message = {"value": encode(value, lambda opaque: bool(opaque))}
        frame = to_frame(message, limits.output_kb << 10)
    except MemoryError:
        frame = to_frame({"status": "memory"}, MESSAGE_ROOM)
    except CodecError as failure:
        frame = to_frame({"status": "output_limit", "detail": str(failure)}, MESSAGE_ROOM)
    except BaseException as failure:
        detail = "{name}: {text}".format(**describe_exception(failure))
        frame = to_frame({"status": "error", "detail": detail}, MESSAGE_ROOM)
    write_all(outcome, frame)
    os._exit(0)


def _load(source: str, paths: list[str]) -> tuple[dict[str, Any], BaseException | None]:
    """Run the program as a module named `solution`: its names, and what it raised if it did."""
    sys.path.extend(paths)
    module = type(sys)("solution")
    sys.modules["solution"] = module
    try:
        exec(compile(source, "<program>", "exec"), module.__dict__)
    except BaseException as error:
        return module.__dict__, error
    return module.__dict__, None


def judge(job: int, outcome: int, program: int) -> None:
    """Run the statements of a test against the program in the other process, and send the verdict."""
    content = _read_job(job)
    sys.path.extend(content["paths"])
    os.write(outcome, to_frame(_verdict(content["test"], JudgeSide(program)), 1 << 16))
    os._exit(0)


def _verdict(source: str, side: JudgeSide) -> dict[str, Any]:
    try:
        loaded = side.channel.receive().get("reply", {})
        if "raised" in loaded:
            raised = loaded["raised"]
            status = "memory" if raised.get("name") == "MemoryError" else "error"
            return {"status": status, "detail": "{name}: {text}".format(**raised)}
        exec(compile(source, "<test>", "exec"), _names_for(source, side))
    except AssertionError as error:
        return {"status": "failed", "detail": str(error)[:500]}
    except MemoryError:
        return {"status": "memory"}
    except ProgramGone as error:
        return {"status": "error", "detail": str(error)[:500]}
    except BaseException as error:
        return {"status": "error", "detail": f"{type(error).__name__}: {error}"[:500]}
    return {"status": "error", "detail": "the program ended"} if side.channel.broken else {"status": "passed"}


def _names_for(source: str, side: JudgeSide) -> dict[str, Any]:
    """Globals for a test: usual modules, and the program's names where the test has no other meaning for them."""
    import ast

    names: dict[str, Any] = {"__name__": "test", "__builtins__": builtins}
    nodes = list(ast.walk(ast.parse(source)))
    known = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    known |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))}
    imports = [n for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))]
    known |= {alias.asname or alias.name.split(".")[0] for node in imports for alias in node.names}
    known |= {n.arg for n in nodes if isinstance(n, ast.arg)} | set(dir(builtins))
    for name in sorted({n.id for n in nodes if isinstance(n, ast.Name)} - known):
        try:
            names[name] = __import__(name) if name in _USUAL_MODULES else side.name(name)
        except NameError:
            continue
    return names


def _read_job(descriptor: int) -> Any:
    data = bytearray()
    while chunk := os.read(descriptor, 1 << 20):
        data += chunk
    os.close(descriptor)
    found = from_frame(data, INPUT_LIMIT)
    if found is None:
        os._exit(1)
    gc.collect()
    return found[0]


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`, however many calls it takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
