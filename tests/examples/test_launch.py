"""The launch scripts: their syntax, and the commands that they come to, with an interpreter that writes them down."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "examples" / "launch"


@pytest.fixture
def record(tmp_path):
    """A stand-in for the interpreter, which waits for the nodes as the script it is given would, and the file of its
    calls' arguments and Ray address.
    """
    calls = tmp_path / "calls"
    python = tmp_path / "python"
    wait = f'until [ $(grep -c " start " {calls}) -ge ${{NODES:-3}} ]; do sleep 0.05; done'
    note = f'echo "${{RAY_ADDRESS:--}} $*" >> {calls}'
    python.write_text(f'#!/usr/bin/env bash\nif [ "$1" = - ]; then {wait}; fi\n{note}\n')
    python.chmod(0o755)
    return python, calls


def launch(record, script, *arguments, **environment):
    python, calls = record
    settings = os.environ | {"PYTHON": str(python)} | environment
    result = subprocess.run(
        ["bash", str(LAUNCH / script), *arguments], env=settings, capture_output=True, text=True, timeout=60
    )
    return result, calls.read_text().splitlines() if calls.is_file() else []


@pytest.mark.parametrize("name", sorted(file.name for file in LAUNCH.iterdir()))
def test_a_script_is_whole(name):
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)


@pytest.mark.parametrize(("gpus", "expected"), [("0", ""), ("4", " trainer.n_gpus_per_node=4")])
def test_one_machine_trains_the_config_with_the_overrides(record, gpus, expected):
    result, (call,) = launch(record, "single_node.sh", "data.seed=3", CONFIG="llada_8b_math", GPUS=gpus)
    assert result.returncode == 0
    command = "- -m verl.trainer.main_ppo --config-name llada_8b_math trainer.nnodes=1"
    assert call == f"{command}{expected} data.seed=3"


def test_the_head_trains_on_all_nodes_and_workers_join_it(record):
    shared = {"RAY_PORT": "7000", "RAY_AUTH_TOKEN": "secret", "RAY_ARGS": "--num-gpus=1"}
    result, calls = launch(record, "ray_cluster.sh", "head", "10.0.0.1", "data.seed=3", NODES="1", **shared)
    assert result.returncode == 0
    (start,) = [call for call in calls if " start --head " in call]
    assert "--node-ip-address=10.0.0.1 --port=7000" in start and start.endswith("--num-gpus=1")
    assert "- - 10.0.0.1:7000 1 300" in calls
    assert calls[-1].startswith("10.0.0.1:7000 -m verl.trainer.main_ppo ") and "trainer.nnodes=1" in calls[-1]
    assert calls[-1].endswith("data.seed=3")
    result, calls = launch(record, "ray_cluster.sh", "worker", "10.0.0.1", "10.0.0.2", **shared)
    assert "start --address=10.0.0.1:7000 --node-ip-address=10.0.0.2" in calls[-1]


def test_a_cluster_needs_its_token_and_its_size(record):
    result, calls = launch(record, "ray_cluster.sh", "head", "10.0.0.1", NODES="2", RAY_AUTH_TOKEN="")
    assert result.returncode != 0 and "RAY_AUTH_TOKEN" in result.stderr and not calls
    result, _ = launch(record, "ray_cluster.sh", "head", "10.0.0.1", NODES="", RAY_AUTH_TOKEN="secret")
    assert result.returncode != 0 and "NODES" in result.stderr


def test_slurm_brings_up_a_node_on_each_machine(record, tmp_path):
    stubs = {
        "scontrol": "echo n1; echo n2; echo n3",
        "hostname": "echo 10.0.0.1 fe80::1",
        "srun": 'while [[ $1 == --* ]]; do shift; done; "$@"',
    }
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(LAUNCH.parents[1]), "SLURM_JOB_ID": "712345", "SLURM_JOB_NODELIST": "n[1-3]"}
    settings = job | {"SLURM_GPUS_PER_NODE": "h100:4", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result, calls = launch(record, "slurm.sbatch", "data.seed=3", CONFIG="llada_8b_code", **settings)
    assert result.returncode == 0, result.stderr
    assert "- - 10.0.0.1:22345 3 300" in calls
    (training,) = [call for call in calls if "main_ppo" in call]
    assert training.startswith("10.0.0.1:22345 ") and "--config-name llada_8b_code trainer.nnodes=3" in training
    assert training.endswith("trainer.n_gpus_per_node=4 data.seed=3")
    assert sum(" start --address=10.0.0.1:22345" in call for call in calls) == 2
