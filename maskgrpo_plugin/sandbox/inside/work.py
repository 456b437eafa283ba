"""What a test's processes do: load the program and evaluate or serve it, or judge it by the test's statements."""

from __future__ import annotations

import builtins
import gc
import os
import sys
import types

from .channel import ProgramGone
from .codec import INPUT_LIMIT, CodecError, encode, from_frame, to_frame
from .exceptions import describe_exception
from .judge_side import JudgeSide
from .outcomes import MESSAGE_ROOM
from .program_side import ProgramSide

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .confinement import Limits

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
        value = eval(compile(content["content"], "<test>", "eval"), namespace)
        message = {"value": encode(value, lambda opaque: bool(opaque))}
        frame = to_frame(message, limits.output_kb << 10)
    except CodecError as failure:
        frame = to_frame({"status": "output_limit", "detail": str(failure)}, MESSAGE_ROOM)
    except BaseException as failure:
        frame = to_frame(_failure(failure), MESSAGE_ROOM)
    write_all(outcome, frame)
    os._exit(0)


def run_script(job: int, outcome: int) -> None:
    """Run the program as a script that reads standard input, and say how it ended."""
    content = _read_job(job)
    path = f"/tmp/.input-{os.getpid()}"
    message: dict[str, Any] = {}
    try:
        written = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        write_all(written, content["content"].encode(errors="surrogatepass"))
        os.close(written)
        os.dup2(os.open(path, os.O_RDONLY), 0)
        os.unlink(path)
        sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
        sys.argv = ["program"]
        _, error = _load(content["program"], content["paths"], name="__main__")
        if error is not None and not (isinstance(error, SystemExit) and error.code in (None, 0)):
            message = _failure(error)
        _finish_threads()
        sys.stdout.flush()
    except BaseException as failure:
        message = _failure(failure)
    write_all(outcome, to_frame(message, MESSAGE_ROOM))
    os._exit(0)


def _finish_threads() -> None:
    """What an interpreter does at its end: wait for threads, call what was registered."""
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    import atexit

    atexit._run_exitfuncs()


def judge_inside(job: int, test: int, outcome: int) -> None:
    """Load the program, then run the statements of a test among its names, and send the verdict with the word."""
    content = _read_job(job)
    namespace, error = _load(content["program"], content["paths"])
    given = _read_job(test)
    message = {"status": "passed"}
    try:
        if error is not None:
            raise error
        exec(compile(given["test"], "<test>", "exec"), namespace)
    except AssertionError as failure:
        message = {**_failure(failure), "status": "failed"}
    except BaseException as failure:
        message = _failure(failure)
    write_all(outcome, to_frame({**message, "word": given["word"]}, MESSAGE_ROOM))
    os._exit(0)


def _failure(error: BaseException) -> dict[str, Any]:
    """The outcome of a test in which something was raised."""
    if isinstance(error, MemoryError):
        return {"status": "memory"}
    return {"status": "error", "detail": "{name}: {text}".format(**describe_exception(error))}


def _load(source: str, paths: list[str], name: str = "solution") -> tuple[dict[str, Any], BaseException | None]:
    """Run the program as a module of that name: its names, and what it raised if it did."""
    sys.path.extend(paths)
    module = type(sys)(name)
    sys.modules[name] = module
    # What the module `site` would have added, and a machine on which `Pool()` stays within the limit on processes.
    for place, added in ((builtins, {"exit": sys.exit, "quit": sys.exit}), (os, {"cpu_count": lambda: 2})):
        vars(place).update(added)
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


class _Solution(types.ModuleType):
    """The program as a module, for a test that imports it."""

    def __init__(self, side: JudgeSide):
        super().__init__("solution")
        self.__dict__["side"] = side

    def __getattr__(self, name: str) -> Any:
        try:
            return self.side.name(name)
        except NameError as error:
            raise AttributeError(str(error)) from None


def _verdict(source: str, side: JudgeSide) -> dict[str, Any]:
    try:
        loaded = side.channel.receive().get("reply", {})
        if "raised" in loaded:
            raised = loaded["raised"]
            status = "memory" if raised.get("name") == "MemoryError" else "error"
            return {"status": status, "detail": "{name}: {text}".format(**raised)}
        sys.modules["solution"] = _Solution(side)
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
