"""DeepSpeed's CPUAdam on FSDP2's parameters makes the updates of torch's AdamW, with the state in checkpoints."""

import os
import socket
from copy import deepcopy

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed, nn

pytest.importorskip("deepspeed", reason="the extra `deepspeed` is not installed")
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 3, bias=False))


def train(model, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        model(torch.randn(4, 8, generator=generator)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def build(parameters):
    """The optimiser as verl makes it of the documented keys."""
    from verl.workers.config.optimizer import FSDPOptimizerConfig, build_optimizer

    module = "maskgrpo_plugin.workers.engine.cpu_adam"
    config = FSDPOptimizerConfig(optimizer_impl=module, optimizer="CPUAdam", **SETTINGS)
    return build_optimizer(parameters, config)


def sharded(rank, world, port):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    plain, model = make_model(), make_model()
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    expected, optimizer = torch.optim.AdamW(plain.parameters(), **SETTINGS), build(model.parameters())
    train(plain, expected, 3, seed=1)
    train(model, optimizer, 3, seed=1)
    saved = deepcopy(optimizer.state_dict())
    optimizer = build(model.parameters())
    optimizer.load_state_dict(saved)
    train(plain, expected, 2, seed=2)
    train(model, optimizer, 2, seed=2)
    for right, found in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found.full_tensor(), right.detach(), atol=1e-5, rtol=1e-5)
    distributed.destroy_process_group()


def test_sharded_parameters_are_updated_as_by_adamw():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    build(make_model().parameters())  # compiles the kernel once
    mp.spawn(sharded, args=(2, port), nprocs=2)
