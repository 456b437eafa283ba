"""The providers elsewhere: what is sent to them, and what becomes of tests when they fail."""

import asyncio
import functools
import http.server
import json
import shutil
import socket
import subprocess
import sys
import threading
import types

import pytest
from sandbox_programs import ALL_TESTS, FORGERIES

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.sandbox import SandboxConfig, Status, run_batch, run_tests, score_program


class Service(http.server.BaseHTTPRequestHandler):
    """A router or a Sandbox Fusion that runs scripts on this machine, and fails when it is told to."""

    def do_POST(self):
        service = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        service.requests.append(body)
        failure = service.failures.pop(0) if service.failures else None
        if failure == "drop":
            self.connection.close()
            return
        if failure == "500":
            self.send_error(500)
            return
        answer = self.batch(body, failure) if self.path == "/execute_batch" else self.fusion(body)
        data = b"no json" if failure == "garbage" else json.dumps(answer).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def batch(self, body, failure):
        assert len(body["languages"]) == len(body["scripts"])
        answers = [{"execution": _execution(_run_script(script)), "exception_str": None} for script in body["scripts"]]
        if failure == "one":
            answers[0] = {"execution": None, "exception_str": "no machine was free"}
        return answers

    def fusion(self, body):
        printed = _run_script(body["code"])
        return {"status": "Success", "run_result": {"status": "Finished", "return_code": 0, "stdout": printed}}

    def log_message(self, *arguments):
        pass


@functools.cache
def _alone():
    """The command under which a script sees no processes but its own; None where the kernel or the user has none."""
    for rights in ([], ["--user", "--map-root-user"]):
        command = ["unshare", *rights, "--pid", "--fork", "--kill-child", "--mount-proc"]
        if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    return None


def _run_script(script):
    command = [*(_alone() or []), sys.executable, "-I", "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return "some noise\n" + run.stdout


def _execution(printed):
    logs = {"stdout": [printed[:20], printed[20:]], "stderr": []}
    return {"results": [], "logs": logs, "error": None, "execution_count": 1}


@pytest.fixture
def service():
    """A loopback server; `failures` says how each of the next requests fails."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        server.failures, server.requests = [], []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


PROGRAMS = [f"def f(x): return x + {n}" for n in range(4)]
PROGRAM_TESTS = [["assert f(1) == 2", "assert f(1) in (2,)"]] * 4
REMOTE = {"retry_wait_s": 0.01, "request_timeout_s": 5.0, "timeout_s": 2.0, "total_timeout_s": 6.0}


def _remote(service, provider, **more):
    url = service.url + ("/run_code" if provider == "sandbox_fusion" else "")
    return SandboxConfig(provider=provider, url=url, **{**REMOTE, **more})


@pytest.mark.parametrize("provider", ["e2b", "sandbox_fusion"])
class TestServices:
    def test_programs(self, service, provider):
        reports = run_batch(PROGRAMS[:2], PROGRAM_TESTS[:2], config=_remote(service, provider))
        assert [report.passed for report in reports] == [0, 2]
        assert reports[0].statuses == (Status.FAILED, Status.FAILED)

    def test_forgeries(self, service, provider):
        """One of them writes into the files of all processes that it sees, which must be none of this machine's."""
        names = ["exit before the tests", "prints verdicts", "always equal"]
        names += ["reads other processes"] if _alone() else []
        programs = [FORGERIES[name] for name in names]
        reports = run_batch(programs, [ALL_TESTS[:2]] * len(names), config=_remote(service, provider))
        assert [report.passed for report in reports] == [0] * len(names), reports

    def test_the_expected_value_is_not_sent(self, service, provider):
        assert (
            run_tests("def f(x): return 1", ["assert f(1) == 'kumquat'"], config=_remote(service, provider)).total == 1
        )
        assert service.requests and "kumquat" not in json.dumps(service.requests)


class TestOutages:
    def test_retried(self, service):
        service.failures = ["500", "drop", "garbage"]
        config = _remote(service, "e2b", retries=3)
        assert run_tests(PROGRAMS[1], PROGRAM_TESTS[0], config=config).pass_rate == 1.0
        assert len(service.requests) == 4

    def test_only_what_failed_is_repeated(self, service):
        service.failures = ["one"]
        reports = run_batch(PROGRAMS[1:3], PROGRAM_TESTS[:2], config=_remote(service, "e2b"))
        assert [report.passed for report in reports] == [2, 0]
        assert [len(request["scripts"]) for request in service.requests] == [2, 1]

    def test_mid_batch(self, service, caplog):
        """The service answers the first request and then no more: that is logged, and nothing is raised."""
        service.failures = [None, *["500"] * 20]
        config = _remote(service, "e2b", batch_size=1, concurrency=1, retries=1)
        reports = run_batch([PROGRAMS[1]] * 3, PROGRAM_TESTS[:3], config=config)
        assert reports[0].pass_rate == 1.0
        assert [r.statuses for r in reports[1:]] == [(Status.SANDBOX_ERROR,) * 2] * 2
        assert caplog.text.count("the sandbox failed, and 2 tests with it: HTTP status 500") == 2

    def test_nobody_listens(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for provider, path in (("e2b", ""), ("sandbox_fusion", "/run_code")):
            config = SandboxConfig(provider=provider, url=f"http://127.0.0.1:{port}{path}", retries=0, **REMOTE)
            scored = score_program(PROGRAMS[1], PROGRAM_TESTS[0], config)
            assert scored["acc"] == 0.0 and scored["tests_sandbox_error"] == 2.0


class FakeMachine:
    """Stands for e2b_code_interpreter.AsyncSandbox: same calls, runs the script here."""

    made, killed, under_way, most, refuse = [], 0, 0, 0, 0

    @classmethod
    async def create(cls, template=None, timeout=None, *, request_timeout=None, api_key=None):
        if cls.refuse:
            cls.refuse -= 1
            raise ConnectionError("refused")
        cls.made.append((template, timeout, request_timeout, api_key))
        return cls()

    async def run_code(self, code, language=None, timeout=None):
        assert language == "python" and timeout > 0
        cls = type(self)
        cls.under_way += 1
        cls.most = max(cls.most, cls.under_way)
        printed = await asyncio.to_thread(_run_script, code)
        cls.under_way -= 1
        return types.SimpleNamespace(logs=types.SimpleNamespace(stdout=[printed], stderr=[]), error=None)

    async def kill(self):
        type(self).killed += 1


def test_e2b_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "e2b_code_interpreter", types.SimpleNamespace(AsyncSandbox=FakeMachine))
    FakeMachine.refuse = 1
    config = SandboxConfig(provider="e2b", api_key="key", concurrency=2, **REMOTE)
    reports = run_batch(PROGRAMS, PROGRAM_TESTS, config=config)
    assert [report.passed for report in reports] == [0, 2, 0, 0]
    assert FakeMachine.killed == len(FakeMachine.made) == 4 and FakeMachine.most == 2
    assert FakeMachine.made[0][3] == "key"


def test_e2b_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "e2b_code_interpreter", None)
    with pytest.raises(OptionError, match=r"maskgrpo-plugin\[e2b\]"):
        run_tests("", ["assert f(1) == 1"], config=SandboxConfig(provider="e2b", api_key="other"))
