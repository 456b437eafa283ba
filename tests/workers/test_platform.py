"""The choice between the CPU and an accelerator, with stand-ins for torch's build and its devices."""

import json
import os
import subprocess
from pathlib import Path

import forked_python
import psutil
import pytest
import ray
import torch
import verl.plugin.platform.platform_manager as manager
from omegaconf import OmegaConf

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.workers.platform import (
    PlatformCPU,
    RunPlatform,
    check_device,
    check_local_device,
    worker_environment,
)

ROOT = Path(__file__).parents[2]

# Run before verl is imported: a CUDA build of torch, with or without a device.
STAND_IN = """
import os
import torch
torch.version.cuda, torch.version.hip = "13.0", None
torch.cuda.is_available = lambda: os.environ["STAND_IN_DEVICES"] != "0"
torch.cuda.device_count = lambda: int(os.environ["STAND_IN_DEVICES"])
torch.cuda.get_device_capability = lambda *_: (9, 0)
"""
NAME = f"{STAND_IN}import verl; from verl.utils.device import get_device_name; print(get_device_name())"
WORKER = f"""
import json, sys
import ray
resources, workers = json.loads(sys.argv[1]), {{"py_executable": sys.argv[2]}}
ray.init(
    "local", num_cpus=1, num_gpus=1, resources=resources, runtime_env=workers, include_dashboard=False,
    log_to_driver=False,
)
@ray.remote(num_cpus=1)
def name():
    exec({STAND_IN!r}, {{}})
    import verl
    from verl.utils.device import get_device_name
    return get_device_name()
print(ray.get(name.remote()))
"""
# verl's entry point up to where Ray starts: what the run would do, instead of the run.
RUN = """
import json
from omegaconf import OmegaConf
from verl.trainer import main_ppo
from verl.utils.device import get_device_name
def report(config, task_runner_class):
    variables = OmegaConf.to_container(config.ray_kwargs.ray_init.runtime_env.env_vars)
    print(json.dumps([config.trainer.device, get_device_name(), variables, os.environ.get("VERL_PLATFORM")]))
main_ppo.run_ppo = report
main_ppo.main()
"""


@pytest.fixture
def start(tmp_path):
    """Runs code with `devices` devices for the stand-in; returns the finished process."""

    def run(code, *arguments, devices=0, path=None, **environment):
        python = forked_python.command()
        kept = {key: value for key, value in os.environ.items() if key not in ("VERL_PLATFORM", "RAY_ADDRESS")}
        kept |= {"PYTHONPATH": str(ROOT), "STAND_IN_DEVICES": str(devices), **environment}
        if path:
            kept["PATH"] = f"{path}:{kept['PATH']}"
        command = [*python, "-W", "ignore", "-c", code, *arguments]
        return subprocess.run(command, env=kept, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    return run


def last_line(process):
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("environment", "expected"), [({}, "cpu"), ({"RAY_ADDRESS": "192.0.2.1:6379"}, "cuda")], ids=["alone", "cluster"]
)
def test_a_cuda_build_without_a_device(start, environment, expected):
    assert last_line(start(NAME, **environment)) == expected


def test_an_nvidia_smi_that_answers_is_no_device(start, tmp_path):
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\n")
    smi.chmod(0o755)
    assert last_line(start(NAME, path=smi.parent)) == "cpu"


@pytest.mark.parametrize(
    ("resources", "expected"),
    [({}, "cpu"), ({"accelerator_type:H100": 1}, "cuda")],
    ids=["no accelerator", "the cluster has accelerators"],
)
def test_a_ray_worker_that_sees_no_device(start, resources, expected):
    """Ray hides the devices of a machine from workers without a GPU, so that only the cluster's can tell."""
    assert last_line(start(WORKER, json.dumps(resources), forked_python.for_ray())) == expected


def test_a_config_for_the_cpu_runs_there_on_a_machine_with_a_gpu(start, tiny_run):
    arguments = ["--config-dir", f"{ROOT}/configs", "--config-name", "quickstart", f"quickstart_dir={tiny_run}"]
    cores = psutil.cpu_count(logical=False) or 8
    threads = {"TQ_NUM_THREADS": str(cores)} if cores < 8 else {}
    expected = ["cpu", "cpu", {"VERL_PLATFORM": "cpu"} | threads, "cpu"]
    assert json.loads(last_line(start(STAND_IN + RUN, *arguments, devices=1))) == expected


def test_a_config_for_a_gpu_on_a_machine_without_one_is_refused(start, tiny_run):
    arguments = ["--config-dir", f"{ROOT}/configs", "--config-name", "quickstart", f"quickstart_dir={tiny_run}"]
    process = start(STAND_IN + RUN, *arguments, "trainer.device=cuda")
    assert process.returncode == 2 and "Traceback" not in process.stderr
    message = [line for line in process.stderr.splitlines() if line.startswith("maskgrpo_plugin:")]
    assert len(message) == 1
    for name in ("trainer.device='cuda'", "trainer.device=cpu", "ray_kwargs.ray_init.num_gpus", "RAY_ADDRESS"):
        assert name in message[0]


@pytest.fixture
def machine(monkeypatch):
    """Puts this process on a machine with that build of torch, devices, environment and (running) Ray cluster."""

    def put(platform=None, *, build="13.0", devices=0, cluster=None, **environment):
        monkeypatch.setattr(torch.version, "cuda", build)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
        monkeypatch.setattr(ray, "is_initialized", lambda: cluster is not None)
        monkeypatch.setattr(ray, "cluster_resources", lambda: cluster)
        for name in ("VERL_PLATFORM", "RAY_ADDRESS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        if platform is not None:
            monkeypatch.setattr(manager, "_current_platform", manager.PlatformRegistry.get(platform)())

    return put


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, True),
        ({"build": None}, True),
        ({"devices": 1}, False),
        ({"RAY_ADDRESS": "auto"}, False),
        ({"RAY_ADDRESS": "local"}, True),
        ({"RAY_ADDRESS": "auto", "build": None}, True),
        ({"devices": 1, "VERL_PLATFORM": " CPU "}, True),
        ({"VERL_PLATFORM": "nvidia"}, False),
        ({"cluster": {"CPU": 4.0, "GPU": 1.0}}, True),
        ({"cluster": {"CPU": 4.0, "GPU": 1.0, "accelerator_type:H100": 1.0}}, False),
        ({"cluster": {"CPU": 4.0, "accelerator_type:H100": 1.0}, "build": None}, True),
    ],
)
def test_where_the_cpu_is_the_platform(machine, where, expected):
    machine(**where)
    assert PlatformCPU().is_platform_available(use_smi_check=True) is expected


def run_config(device, **ray_init):
    config = OmegaConf.create({"trainer": {"device": device}, "ray_kwargs": {"ray_init": ray_init}})
    OmegaConf.set_struct(config, True)
    return config


def test_a_run_in_front_of_a_cluster_takes_the_device_of_its_config(machine):
    for device, address in (("cuda", {"RAY_ADDRESS": "auto"}), ("cuda", {})):
        machine("cpu", build=None, **address)
        config = run_config(device, **({} if address else {"address": "192.0.2.1:6379"}))
        RunPlatform().on_run_start(config)
        assert manager.get_platform().device_name == "cuda" and worker_environment() == {}
        assert "runtime_env" not in config.ray_kwargs.ray_init
    machine("nvidia", RAY_ADDRESS="auto")
    config = run_config("cpu", runtime_env={"env_vars": {"A": "1"}})
    RunPlatform().on_run_start(config)
    assert manager.get_platform().device_name == "cpu" and os.environ["VERL_PLATFORM"] == "cpu"
    assert config.ray_kwargs.ray_init.runtime_env == {"env_vars": {"A": "1", "VERL_PLATFORM": "cpu"}}
    RunPlatform().on_job_start(config)


@pytest.mark.parametrize(
    ("platform", "device", "environment", "message"),
    [
        ("cpu", "cuda", {}, "no accelerator can be used here.*trainer.device=cpu.*RAY_ADDRESS"),
        ("cpu", "cuda", {"VERL_PLATFORM": "cpu"}, "VERL_PLATFORM=cpu is set.*trainer.device=cpu"),
        ("cpu", "cuda", {"VERL_PLATFORM": "cpu", "RAY_ADDRESS": "auto"}, "VERL_PLATFORM=cpu is set"),
        ("nvidia", "cpu", {"VERL_PLATFORM": "nvidia"}, "VERL_PLATFORM=nvidia stands for cuda"),
    ],
)
def test_a_contradiction_that_is_left_is_refused(machine, capsys, platform, device, environment, message):
    machine(platform, **environment)
    with pytest.raises(OptionError, match=rf"trainer\.device='{device}'.*{message}"):
        check_device(run_config(device))
    with pytest.raises(SystemExit, match="2"):
        RunPlatform().on_run_start(run_config(device))
    assert capsys.readouterr().err.count("\n") == 1
    assert os.environ.get("VERL_PLATFORM") == environment.get("VERL_PLATFORM")


def test_a_process_does_not_compute_on_a_device_that_it_lacks(machine):
    machine("nvidia", RAY_ADDRESS="auto")
    with pytest.raises(OptionError, match=r"VERL_PLATFORM=None.*sees no accelerator"):
        check_local_device()
    machine("nvidia", devices=1)
    check_local_device()
    machine("cpu")
    check_local_device()
