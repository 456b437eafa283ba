"""Settings of the sandbox: which one, where, and what a program may use."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from maskgrpo_plugin.errors import OptionError, check_choice, check_keys, check_number

PROVIDERS = ("local", "e2b", "sandbox_fusion")
JUDGING = ("outside", "inside")
ISOLATIONS = ("auto", "bubblewrap", "nsjail", "namespaces")
SERVICE_CONCURRENCY = 32


@dataclass(frozen=True)
class SandboxConfig:
    """Settings of the sandbox, such as the section `reward.sandbox` of a run's config.

    Attributes:
        provider: `local` (processes on this machine), `e2b` (E2B's service, or its router where `url` is set) or
            `sandbox_fusion` (needs `url`).
        isolation: local only. `auto` takes the first that works of bubblewrap, nsjail and namespaces of our own.
        judging: where a test runs that is more than one call compared with a literal. `outside`: in a process that the
            program cannot reach and that asks the program's for each value. `inside`: in the program's own process,
            which serves every test that plain Python does, but trusts what the program makes of `==` and of Python's
            own functions. See docs/code_rewards.md.
        allow_unisolated: local only. Run programs with limits alone where nothing isolates; for code you trust: it
            reads what we read, reaches the network, and what it starts may outlive us where we are killed.
        url: where the service listens; router: `http://host:port`, sandbox_fusion: `http://host:port/run_code`.
        api_key: E2B's key; empty: the environment's E2B_API_KEY. A run's config must leave it empty, since verl prints
            the config.
        template: E2B's template; empty: its default.
        timeout_s: wall-clock seconds for one test, the program's loading included; waiting for a processor of a busy
            machine does not count, up to twice as long. > 0.
        total_timeout_s: wall-clock seconds for all tests of one program. >= timeout_s.
        memory_mb: MiB for the processes of one test and the files that they write. >= 64.
        processes: processes and threads of one test. >= 2.
        file_mb: MiB of /tmp with shared memory, which lies there, and of one file. >= 1.
        output_kb: KiB that a test may print, and KiB of the value it may return, written as JSON. >= 1.
        concurrency: programs under way at once in this process; 0: one for each core, 32 with a service.
        request_timeout_s: services only. Seconds that a request may take beyond the programs' own time. > 0.
        retries: services only. Further attempts after a request that failed. >= 0.
        retry_wait_s: services only. Seconds before the first further attempt; doubles each time. >= 0.
        batch_size: router only. Most programs in one request. >= 1.
        python_path: local only. Folders, shown read-only, that programs and tests may import from besides the
            standard library.

    Raises:
        OptionError: a value is out of its range.
    """

    provider: str = "local"
    isolation: str = "auto"
    judging: str = "outside"
    allow_unisolated: bool = False
    url: str = ""
    api_key: str = field(default="", repr=False)
    template: str = ""
    timeout_s: float = 5.0
    total_timeout_s: float = 30.0
    memory_mb: int = 512
    processes: int = 16
    file_mb: int = 16
    output_kb: int = 256
    concurrency: int = 0
    request_timeout_s: float = 30.0
    retries: int = 2
    retry_wait_s: float = 1.0
    batch_size: int = 32
    python_path: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "python_path", tuple(self.python_path))
        check_choice("provider", self.provider, PROVIDERS)
        check_choice("isolation", self.isolation, ISOLATIONS)
        check_choice("judging", self.judging, JUDGING)
        least = {"memory_mb": 64, "processes": 2, "file_mb": 1, "output_kb": 1, "concurrency": 0, "retries": 0}
        for name, minimum in {**least, "batch_size": 1}.items():
            check_number(name, getattr(self, name), minimum, whole=True)
        for name in ("timeout_s", "request_timeout_s"):
            if not getattr(self, name) > 0:
                raise OptionError(name, getattr(self, name), "allowed: more than 0 seconds")
        if not self.total_timeout_s >= self.timeout_s:
            raise OptionError("total_timeout_s", self.total_timeout_s, "must be at least timeout_s")
        if not self.retry_wait_s >= 0:
            raise OptionError("retry_wait_s", self.retry_wait_s, "allowed: 0 or more seconds")
        if self.provider == "sandbox_fusion" and not self.url:
            raise OptionError("url", self.url, "must be set where provider is sandbox_fusion")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise OptionError("url", self.url, "must start with http:// or https://")
        for folder in self.python_path:
            if not os.path.isabs(folder):
                raise OptionError("python_path", folder, "must hold absolute paths")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "SandboxConfig":
        """The settings of a configuration's section.

        Raises:
            OptionError: there is no setting of that name, or a value is out of its range.
        """
        check_keys(values, [f.name for f in fields(cls)])
        return cls(**values)

    @property
    def workers(self) -> int:
        """Programs under way at once."""
        return self.concurrency or (SERVICE_CONCURRENCY if self.provider != "local" else os.cpu_count() or 1)
