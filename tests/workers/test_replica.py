"""Where a rollout server runs: beside its training worker, on the accelerator that Ray gave that worker."""

from types import SimpleNamespace

import pytest
import ray
from verl.plugin.platform.platform_cuda import PlatformCUDA
from verl.plugin.platform.platform_rocm import PlatformROCm

from maskgrpo_plugin.workers import engine as _engines  # noqa: F401  (importing registers the engines)
from maskgrpo_plugin.workers.platform import PlatformCPU
from maskgrpo_plugin.workers.rollout import replica
from maskgrpo_plugin.workers.rollout.replica import server_environment, worker_place
from maskgrpo_plugin.workers.rollout.server import CONTROL, DiffusionServer

VISIBLE = "CUDA_VISIBLE_DEVICES"
CONTROL_CALLS = ("receive_bucket", "wake_up", "sleep", "abort_all_requests", "resume_generation", "score")


def make(platform):
    """A platform as verl has it on a machine with its devices."""
    return platform.__new__(platform)


@pytest.mark.parametrize("platform", [PlatformCUDA, PlatformROCm])
@pytest.mark.parametrize("visible", [None, "0,1,2,3", "3"])
def test_a_server_sees_the_accelerator_of_its_worker_whatever_the_environment_says(monkeypatch, platform, visible):
    """Under RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES a worker sees every device of its node, or no list at all."""
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    context = SimpleNamespace(get_node_id=lambda: "node", get_accelerator_ids=lambda: {"GPU": ["3"]})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(replica, "get_platform", lambda: make(platform))
    node, accelerators = worker_place()
    environment = server_environment(make(platform), accelerators)
    assert node == "node" and environment[VISIBLE] == "3"
    assert environment["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"] == "1"


def test_rocm_keeps_ray_from_setting_its_own_variables():
    environment = server_environment(make(PlatformROCm), ["1"])
    assert environment["RAY_EXPERIMENTAL_NOSET_HIP_VISIBLE_DEVICES"] == "1"


def test_a_worker_without_an_accelerator_is_an_error_and_the_cpu_needs_none():
    with pytest.raises(RuntimeError, match="no GPU"):
        server_environment(make(PlatformCUDA), [])
    assert server_environment(make(PlatformCPU), []) == {}


def test_an_engine_is_offered_for_the_devices_whose_weights_can_be_sent():
    from verl.workers.engine.base import EngineRegistry

    for by_device in EngineRegistry._engines["masked_diffusion"].values():
        assert sorted(by_device) == ["cpu", "cuda"]


@pytest.mark.parametrize("name", CONTROL_CALLS)
def test_control_calls_do_not_wait_behind_requests(name):
    """More requests than an actor takes at once wait for weights that only a control call brings."""
    assert getattr(DiffusionServer, name).__ray_concurrency_group__ == CONTROL
    assert not hasattr(DiffusionServer.generate, "__ray_concurrency_group__")
