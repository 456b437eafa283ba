"""A CPU platform for verl, and the choice between it and an accelerator: by the machine, and by a run's config.

- `VERL_PLATFORM` decides where it is set.
- Otherwise a process that sees no accelerator is on the CPU, whatever torch was built for.
- Except where the accelerators are elsewhere: on the driver in front of the cluster that `RAY_ADDRESS` names, and in
  Ray workers, from which Ray hides the accelerators of their machine, where the cluster has some.
- A run whose `trainer.device` is `cpu` takes the CPU on any machine, its workers too (`RunPlatform`).
"""

import os
import sys
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import psutil
import ray
import torch
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry, get_platform, set_platform

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.registry import Registered

VARIABLE = "VERL_PLATFORM"
TRANSFER_THREADS = "TQ_NUM_THREADS"
DEFAULT_TRANSFER_THREADS = 8
_RAY_ADDRESSES_OF_NO_CLUSTER = ("", "local")  # `local` makes Ray start its own


def _cpu_device_module() -> ModuleType:
    """Build a `torch.cuda`-shaped module for the CPU: memory queries answer 0, synchronisation does nothing."""
    module = ModuleType("maskgrpo_plugin.cpu_device")

    def zero(*_args: Any, **_kwargs: Any) -> int:
        return 0

    def nothing(*_args: Any, **_kwargs: Any) -> None:
        return None

    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(module, name, zero)
    for name in ("empty_cache", "synchronize", "set_device", "ipc_collect", "reset_peak_memory_stats"):
        setattr(module, name, nothing)
    module.is_available = lambda: False  # type: ignore[attr-defined]
    module.device_count = lambda: 1  # type: ignore[attr-defined]
    module.current_device = lambda: torch.device("cpu")  # type: ignore[attr-defined]
    module.get_device_name = lambda *_: "CPU"  # type: ignore[attr-defined]
    module.mem_get_info = lambda *_: (0, 0)  # type: ignore[attr-defined]
    module.memory_stats = lambda *_: {}  # type: ignore[attr-defined]
    module.manual_seed = torch.manual_seed  # type: ignore[attr-defined]
    module.manual_seed_all = torch.manual_seed  # type: ignore[attr-defined]
    module.get_rng_state = torch.get_rng_state  # type: ignore[attr-defined]
    module.set_rng_state = torch.set_rng_state  # type: ignore[attr-defined]
    return module


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """verl's platform interface on the CPU; Ray's "GPU" stands for a logical slot (`ray_init.num_gpus`).

    The module's docstring says when it is chosen.
    """

    _device_module = _cpu_device_module()

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        return self._device_module

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return _override() == "cpu" if _override() else _has_cpu_only()

    def current_device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        return None

    def synchronize(self, device_index: int | None = None) -> None:
        return None

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        return None

    def empty_cache(self) -> None:
        return None

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str):
        yield

    def profiler_start(self) -> None:
        return None

    def profiler_stop(self) -> None:
        return None

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None


def sees_accelerator() -> bool:
    """Whether a registered platform other than the CPU has a device that this process can use."""
    for name in PlatformRegistry.registered_names():
        platform = PlatformRegistry.get(name)
        try:
            if platform not in (None, PlatformCPU) and platform().is_available():
                return True
        except Exception:  # torch lacks the module of that platform, or its driver fails
            continue
    return False


def worker_environment() -> dict[str, str]:
    """Variables that make Ray workers take this process's choice of the CPU; none on an accelerator."""
    return {VARIABLE: "cpu"} if get_platform().device_name == "cpu" else {}


def check_local_device() -> None:
    """Refuse to compute in this process where its platform is an accelerator that it does not see.

    Raises:
        OptionError: it is a driver in front of a cluster, or `VERL_PLATFORM` names the accelerator.
    """
    if get_platform().device_name != "cpu" and not sees_accelerator():
        allowed = "this process sees no accelerator; cpu computes on the CPU"
        raise OptionError(VARIABLE, os.environ.get(VARIABLE), allowed)


def check_device(config: DictConfig) -> None:
    """Refuse a run whose `trainer.device` and platform contradict each other.

    Raises:
        OptionError: a run for an accelerator on the CPU, or the other way round.
    """
    device, platform, override = config.trainer.device, get_platform().device_name, os.environ.get(VARIABLE)
    if (device == "cpu") == (platform == "cpu"):
        return
    if device == "cpu":
        allowed = f"{VARIABLE}={override} stands for {platform}; unset it, or set trainer.device={platform}"
        raise OptionError("trainer.device", device, allowed)
    found = f"{VARIABLE}={override} is set" if override else "no accelerator can be used here"
    raise OptionError(
        "trainer.device",
        device,
        f"{found}. For the CPU: trainer.device=cpu, ray_kwargs.ray_init.num_gpus=<training ranks> and what else "
        f"configs/cpu.yaml sets. For a GPU cluster: RAY_ADDRESS=<its address> and no {VARIABLE}",
    )


class RunPlatform(Callback):
    """Hydra's callback (`hydra.callbacks`) that fits the platform to `trainer.device` before verl reads either.

    verl sets `trainer.device` to the platform that it found, so that nobody could see later what was asked for.
    A contradiction that is left ends the run with one line.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called with the composed config, which the run then gets."""
        try:
            choose_platform(config)
        except OptionError as error:
            sys.stderr.write(f"maskgrpo_plugin: {error}\n")
            raise SystemExit(2) from None

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called before each run of a sweep."""
        self.on_run_start(config)


def choose_platform(config: DictConfig) -> None:
    """Take the platform that `trainer.device` asks for; `VERL_PLATFORM` stays above it.

    On the CPU, the choice is handed on to the run's workers, in the environment and in `ray_kwargs.ray_init`, which
    reaches those of a cluster that runs already.

    Raises:
        OptionError: device and platform contradict each other all the same.
    """
    device, on_cpu = config.trainer.device, get_platform().device_name == "cpu"
    if not _override():
        if device == "cpu" and not on_cpu:
            set_platform(PlatformCPU())
        elif device != "cpu" and on_cpu and _names_cluster(OmegaConf.select(config, "ray_kwargs.ray_init.address")):
            name = "huawei" if device == "npu" else "nvidia"
            set_platform(PlatformRegistry.get(name)())  # type: ignore[misc]
    check_device(config)
    for name, value in (worker_environment() | transfer_threads(config)).items():
        os.environ[name] = value
        if "ray_kwargs" in config:
            OmegaConf.update(config, f"ray_kwargs.ray_init.runtime_env.env_vars.{name}", value, force_add=True)


def transfer_threads(config: DictConfig) -> dict[str, str]:
    """The threads of TransferQueue for a machine of fewer cores than its default, of which it warns at each call.

    None where the environment sets them, and on clusters, whose machines are others.
    """
    cores = psutil.cpu_count(logical=False) or DEFAULT_TRANSFER_THREADS
    cluster = _names_cluster(OmegaConf.select(config, "ray_kwargs.ray_init.address"))
    if TRANSFER_THREADS in os.environ or cluster or cores >= DEFAULT_TRANSFER_THREADS:
        return {}
    return {TRANSFER_THREADS: str(cores)}


def _override() -> str:
    return os.environ.get(VARIABLE, "").strip().lower()


def _names_cluster(address: str | None = None) -> bool:
    """Whether `RAY_ADDRESS`, or an address of the config, names a Ray cluster that runs already."""
    given = address or os.environ.get("RAY_ADDRESS")
    return (given or "").strip() not in _RAY_ADDRESSES_OF_NO_CLUSTER


def _has_cpu_only() -> bool:
    """Whether neither this process nor the cluster that it belongs to has an accelerator that torch is built for."""
    if sees_accelerator():
        return False
    if not (torch.version.cuda or torch.version.hip or hasattr(torch, "npu")):
        return True
    if ray.is_initialized():  # its "GPU" may be a logical one of ours, but only a device that it found has a type
        return not any(name.startswith("accelerator_type:") for name in ray.cluster_resources())
    return not _names_cluster()


# verl alone takes NVIDIA's platform wherever `nvidia-smi` runs, also where torch cannot use the GPU. In Ray workers
# its own order of detection decides, which asks `is_platform_available`.
if not _override() and not ray.is_initialized() and _has_cpu_only():
    set_platform(PlatformCPU())

REGISTERS = (Registered("platform cpu", lambda: PlatformRegistry.get("cpu") is PlatformCPU),)
