"""The providers elsewhere: E2B, its router, and Sandbox Fusion. Each gets scripts and answers with what they print."""

import abc
import asyncio
import base64
import functools
import importlib
import json
import logging
import secrets
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.sandbox.base import (
    START_UP_S,
    Job,
    Sandbox,
    SandboxFailure,
    from_output,
    inside_sources,
    to_input,
)
from maskgrpo_plugin.sandbox.config import SandboxConfig

logger = logging.getLogger(__name__)

_FUSION_ROOM_MB = 512
_UID = 65534

# Makes the modules of `inside` from their text, and starts.
_LOADER = """
import base64, json, sys, types, zlib
sources = json.loads(zlib.decompress(base64.b64decode({sources!r})))
sys.modules["inside"] = types.ModuleType("inside")
sys.modules["inside"].__path__ = []
for name, text in sources.items():
    module = types.ModuleType("inside." + name)
    module.__package__ = "inside"
    sys.modules["inside." + name] = module
    exec(compile(text, name, "exec"), module.__dict__)
sys.modules["inside.entry"].main({options!r})
"""

# Starts the above in an interpreter of its own and prints, after a mark that it does not know, what it wrote. The
# script hides itself first: its text holds tests, and where it is a file the program could read it.
_SCRIPT = """
def _run():
    import base64, ctypes, os, subprocess, sys
    try:
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
    except Exception:
        pass
    try:
        os.unlink(__file__)
    except (NameError, OSError):
        pass
    data, loader = base64.b64decode({data!r}), {loader!r}
    with subprocess.Popen(
        [sys.executable, "-s", "-S", "-c", loader], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/",
        env={{"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}},
    ) as process:
        try:
            written = process.communicate(data, timeout={seconds})[0]
        except subprocess.TimeoutExpired:
            process.kill()
            written = process.communicate()[0]
    print({mark!r} + base64.b64encode(written).decode(), flush=True)
_run()
"""


def render(job: Job, config: SandboxConfig, mark: str) -> str:
    """A Python script that runs a job wherever it is executed.

    Args:
        mark: printed before the outcomes, so that they are found in what the script prints.

    Raises:
        SandboxFailure: a program or a test is too long.
    """
    data = base64.b64encode(to_input(job, config)).decode()
    return _SCRIPT.format(data=data, loader=_loader(), seconds=config.total_timeout_s + START_UP_S / 2, mark=mark)


@functools.cache
def _loader() -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(inside_sources()).encode())).decode()
    return _LOADER.format(sources=packed, options=json.dumps({"jail": False, "isolated": False, "uid": _UID}))


def read_printed(printed: str, mark: str) -> list[Any]:
    """The outcomes in what a script printed.

    Raises:
        SandboxFailure: there are none.
    """
    _, found, rest = printed.rpartition(mark)
    try:
        outcomes = from_output(base64.b64decode(rest.split("\n", 1)[0], validate=True)) if found else []
    except ValueError:
        outcomes = []
    if not outcomes:
        raise SandboxFailure(f"the script printed no outcomes: {printed[-200:]!r}")
    return outcomes


class ServiceSandbox(Sandbox):
    """Sends scripts to a service; repeats those that failed, alone, `config.retries` times.

    A retry library repeats a call as a whole, and with it the scripts of a batch that did run.
    """

    name = ""
    batch_size = 1

    def __init__(self, config: SandboxConfig):
        super().__init__(config)
        self._slots: asyncio.Semaphore | None = None
        logger.info("code rewards: %s", self.describe())

    def describe(self) -> str:
        return f"programs run by {self.name} {self.config.url}".rstrip()

    @abc.abstractmethod
    async def execute(self, scripts: Sequence[str]) -> list[str | SandboxFailure]:
        """What each script printed, or why it did not run. At most `batch_size` scripts.

        Raises:
            SandboxFailure: the request failed for all of them.
        """

    async def run(self, jobs: Sequence[Job]) -> list[list[Any] | SandboxFailure]:
        size = min(self.batch_size, self.config.workers)
        if self._slots is None:
            self._slots = asyncio.Semaphore(max(1, self.config.workers // size))
        batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]
        return [outcome for batch in await asyncio.gather(*map(self._run_batch, batches)) for outcome in batch]

    async def _run_batch(self, jobs: Sequence[Job]) -> list[list[Any] | SandboxFailure]:
        results: list[list[Any] | SandboxFailure] = [SandboxFailure("not run") for _ in jobs]
        waiting = list(range(len(jobs)))
        for attempt in range(self.config.retries + 1):
            if attempt:
                await asyncio.sleep(self.config.retry_wait_s * 2 ** (attempt - 1))
            for index, result in zip(waiting, await self._attempt([jobs[n] for n in waiting]), strict=True):
                results[index] = result
            waiting = [n for n in waiting if isinstance(results[n], SandboxFailure)]
            if not waiting:
                break
            logger.warning("%s: %d of %d scripts failed: %s", self.name, len(waiting), len(jobs), results[waiting[0]])
        return results

    async def _attempt(self, jobs: Sequence[Job]) -> list[list[Any] | SandboxFailure]:
        """One request for all of `jobs`; nothing is raised."""
        assert self._slots is not None
        mark = secrets.token_hex(16) + ":"
        try:
            scripts = [render(job, self.config, mark) for job in jobs]
            async with self._slots:
                printed = await self.execute(scripts)
            if len(printed) != len(jobs):
                raise SandboxFailure(f"{len(printed)} answers to {len(jobs)} scripts")
        except SandboxFailure as failure:
            return [failure] * len(jobs)
        except Exception as error:
            return [SandboxFailure(f"{type(error).__name__}: {error}")] * len(jobs)
        return [self._read(answer, mark) for answer in printed]

    def _read(self, answer: str | SandboxFailure, mark: str) -> list[Any] | SandboxFailure:
        if isinstance(answer, SandboxFailure):
            return answer
        try:
            return read_printed(answer, mark)
        except SandboxFailure as failure:
            return failure

    @property
    def script_seconds(self) -> int:
        """Seconds that one script may take, start-up included."""
        return int(self.config.total_timeout_s + START_UP_S) + 1


class E2BSandbox(ServiceSandbox):
    """E2B's service by its own client, one fresh machine per program.

    Raises:
        OptionError: e2b_code_interpreter is not installed.
    """

    name = "E2B"

    def __init__(self, config: SandboxConfig):
        try:
            self._client = importlib.import_module("e2b_code_interpreter")
        except ImportError:
            raise OptionError(
                "provider",
                "e2b",
                "it needs the package e2b-code-interpreter: install maskgrpo-plugin[e2b], or set url to a router",
            ) from None
        super().__init__(config)

    async def execute(self, scripts: Sequence[str]) -> list[str | SandboxFailure]:
        given = {"api_key": self.config.api_key, "template": self.config.template}
        timeouts = {"timeout": self.script_seconds + 30, "request_timeout": self.config.request_timeout_s}
        machine = await self._client.AsyncSandbox.create(**timeouts, **{k: v for k, v in given.items() if v})
        try:
            running = machine.run_code(scripts[0], language="python", timeout=self.script_seconds)
            execution = await asyncio.wait_for(running, self.script_seconds + self.config.request_timeout_s)
        finally:
            try:
                await machine.kill()
            except Exception as error:
                logger.warning("E2B: a machine could not be ended, and ends by its own time-out: %s", error)
        return ["".join(execution.logs.stdout)]


class RouterSandbox(ServiceSandbox):
    """A router before E2B: POST {url}/execute_batch with `scripts` and `languages`, JSON answers."""

    name = "the E2B router"

    def __init__(self, config: SandboxConfig):
        self.batch_size = config.batch_size
        super().__init__(config)

    async def execute(self, scripts: Sequence[str]) -> list[str | SandboxFailure]:
        body = {
            "scripts": list(scripts),
            "languages": ["python"] * len(scripts),
            "timeout": self.script_seconds,
            "request_timeout": max(1, int(self.config.request_timeout_s)),
        }
        # A router with fewer machines than scripts runs them in turns; a turn for every script is the worst case.
        total = self.script_seconds * len(scripts) + self.config.request_timeout_s
        timeout = aiohttp.ClientTimeout(total=total, sock_connect=self.config.request_timeout_s)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            async with session.post(f"{self.config.url.rstrip('/')}/execute_batch", json=body) as response:
                if response.status != 200:
                    raise SandboxFailure(f"HTTP status {response.status}")
                answers = await response.json(content_type=None)
        if not isinstance(answers, list):
            raise SandboxFailure("malformed answer: not a list")
        return [_printed_by(answer) for answer in answers]


def _printed_by(answer: Any) -> str | SandboxFailure:
    """What a router says that a script printed; `execution` was once called `result`."""
    if not isinstance(answer, dict):
        return SandboxFailure("malformed answer")
    execution = answer.get("execution") or answer.get("result")
    if not isinstance(execution, dict):
        return SandboxFailure(str(answer.get("exception_str") or "no execution"))
    logs = execution.get("logs")
    printed = logs.get("stdout") if isinstance(logs, dict) else None
    return "".join(map(str, printed)) if isinstance(printed, list) else SandboxFailure("an execution without output")


class FusionSandbox(ServiceSandbox):
    """Sandbox Fusion, by verl's own client."""

    name = "Sandbox Fusion"

    def __init__(self, config: SandboxConfig):
        from verl.utils.reward_score.sandbox_fusion.utils import call_sandbox_api

        self._call = call_sandbox_api
        self._pool = ThreadPoolExecutor(config.workers, thread_name_prefix="sandbox-fusion")
        super().__init__(config)

    async def execute(self, scripts: Sequence[str]) -> list[str | SandboxFailure]:
        call = functools.partial(
            self._call,
            self.config.url,
            scripts[0],
            None,
            compile_timeout=int(START_UP_S),
            run_timeout=self.script_seconds,
            memory_limit_mb=self.config.memory_mb + _FUSION_ROOM_MB,
            language="python",
        )
        answer, problem = await asyncio.get_running_loop().run_in_executor(self._pool, call)
        result = answer.get("run_result") if isinstance(answer, dict) else None
        if not isinstance(result, dict):
            return [SandboxFailure(problem or f"no run_result: {str(answer)[:200]}")]
        return [str(result.get("stdout") or "")]
