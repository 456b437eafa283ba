"""Runs the plugin's training worker on CPU ranks without Ray, and makes the batches that it takes."""

import asyncio
import functools
import math
import os
import pickle
import socket
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import torch.multiprocessing as mp
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from yaml_files import parsed_once

ROOT = Path(__file__).parents[2]
# imported once by the process that the ranks are forked from; each rank for itself would take longer than its steps
PRELOADED = ["verl", "maskgrpo_plugin.workers.actor", "maskgrpo_plugin.workers.rollout.server", "maskgrpo_plugin.sft"]
NO_DEVICES = {"CUDA_VISIBLE_DEVICES": ""}  # one that the first process has seen is broken in those forked from it
SGD = [
    "actor_rollout_ref.rollout.n=2",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.actor.optim.optimizer=SGD",
    "actor_rollout_ref.actor.optim.lr=0.5",
    "actor_rollout_ref.actor.optim.clip_grad=1000.0",
]
ONE_BY_ONE = ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"]


def compose_config(folder, *overrides, name="quickstart", folder_key="quickstart_dir"):
    """The whole config of a run, as verl's entry point composes it; `folder_key` is the key that gets the folder."""
    return pickle.loads(composed(str(folder), overrides, name, folder_key))


@functools.cache
def composed(folder, overrides, name, folder_key):
    """A config, pickled; many tests ask for the same."""
    import verl.trainer

    GlobalHydra.instance().clear()
    with (
        initialize_config_dir(str(ROOT / "configs"), version_base=None),
        mock.patch.object(OmegaConf, "load", parsed_once),
    ):
        search = f"hydra.searchpath=[file://{Path(verl.trainer.__file__).parent / 'config'}]"
        place = [f"{folder_key}={folder}"] if folder_key else []
        return pickle.dumps(compose(name, overrides=[search, *place, *overrides]))


def make_batch(rows=8, *, seed=0, vocabulary=26, stop_id=2):
    """Plain lists of a batch: prompts of 3 to 7 tokens, responses of 8, some with an early end token."""
    g = torch.Generator().manual_seed(seed)
    batch = {"prompts": [], "responses": [], "mask_key": [], "advantages": [], "reveal_step": []}
    for row in range(rows):
        length = 3 + int(torch.randint(5, (1,), generator=g))
        response = torch.randint(9, vocabulary - 3, (8,), generator=g)
        if row % 2:
            response[3 + row % 4 :] = stop_id
        batch["prompts"].append(torch.randint(9, vocabulary - 3, (length,), generator=g).tolist())
        batch["responses"].append(response.tolist())
        batch["mask_key"].append(row % 4)
        batch["advantages"].append(float(torch.randn((), generator=g)))
        batch["reveal_step"].append(torch.randperm(8, generator=g).tolist())
    return batch


def with_record(batch):
    """The batch with a sampler's record that no sampler made."""
    g = torch.Generator().manual_seed(1)
    lengths = [len(response) for response in batch["responses"]]
    return batch | {
        "sampler_log_prob": [(-3 * torch.rand(n, generator=g)).tolist() for n in lengths],
        "sampler_entropy": [torch.rand(n, generator=g).tolist() for n in lengths],
        "sampler_allowed": [[[token, 9, 10] for token in response] for response in batch["responses"]],
    }


def to_tensordict(batch, rows, **non_tensors):
    """The jagged TensorDict of verl for some rows of a batch."""
    from verl.utils import tensordict_utils as tu

    def jagged(lists, dtype):
        return torch.nested.as_nested_tensor([torch.tensor(x, dtype=dtype) for x in lists], layout=torch.jagged)

    pick = {key: [values[i] for i in rows] for key, values in batch.items()}
    length = [len(x) for x in pick["responses"]]
    tensors = {
        "input_ids": jagged([p + r for p, r in zip(pick["prompts"], pick["responses"], strict=True)], torch.long),
        "prompts": jagged(pick["prompts"], torch.long),
        "responses": jagged(pick["responses"], torch.long),
        "response_mask": jagged(pick.get("response_mask") or [[1] * n for n in length], torch.long),
        "advantages": jagged([[a] * n for a, n in zip(pick["advantages"], length, strict=True)], torch.float32),
        "mask_key": torch.tensor(pick["mask_key"]),
        "reveal_step": jagged(pick["reveal_step"], torch.long),
    }
    for name in ("sampler_log_prob", "sampler_entropy", "sampler_allowed"):
        if name in pick:
            tensors[name] = jagged(pick[name], torch.int32 if name == "sampler_allowed" else torch.float32)
    if "uncond_ids" in pick:
        tensors["uncond_ids"] = jagged(pick["uncond_ids"], torch.long)
    return tu.get_tensordict(tensors, non_tensor_dict=non_tensors)


def start_worker(config, role):
    """The plugin's training worker of a whole config, on this rank."""
    import verl  # noqa: F401

    import maskgrpo_plugin.registration  # noqa: F401
    from maskgrpo_plugin.workers.actor import MaskGRPOWorker

    worker = MaskGRPOWorker(config=config.actor_rollout_ref, role=role)
    worker.init_model()
    return worker


def train(worker, config, batch):
    """Log-probabilities of all levels, then one training step, on this rank's share of the batch.

    Returns:
        Jagged (rows, L, μ) old log-probabilities of the response, and what the actor answers to the step.
    """
    from transformers import AutoConfig
    from verl.utils import tensordict_utils as tu
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.utils.padding import response_from_nested

    from maskgrpo_plugin.models.registry import block_length_of

    blocks = block_length_of(AutoConfig.from_pretrained(config.actor_rollout_ref.model.path))
    plan = omega_conf_to_dataclass(config.algorithm.estimation).plan(3, stop_token_ids=(2, 3), block_length=blocks)
    updates = plan.build().updates
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    share = len(batch["prompts"]) // world
    data = to_tensordict(batch, range(rank * share, (rank + 1) * share), estimation=plan.to_plain(), updates=updates)
    scored = data.clone(recurse=False)
    tu.assign_non_tensor(scored, compute_loss=False, calculate_entropy=False, global_token_num=None)
    output = worker.actor.infer_batch(scored)
    old = response_from_nested(output["log_probs"], data["response_mask"])
    data["old_log_probs"] = old
    data["ref_log_prob"] = torch.nested.nested_tensor_from_jagged(old.values() - 0.1, old.offsets())
    rows = config.actor_rollout_ref.actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
    tu.assign_non_tensor(
        data,
        mini_batch_size=rows,
        global_batch_size=rows,
        epochs=1,
        seed=1,
        dataloader_kwargs={"shuffle": False},
        temperature=1.0,
        calculate_entropy=config.actor_rollout_ref.actor.entropy_coeff != 0.0,
    )
    return old, worker.actor.train_mini_batch(data)


def full_weights(module):
    """The whole parameters of a module, sharded or not, by name."""
    from torch.distributed.tensor import DTensor

    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in module.named_parameters()
    }


def one_step(folder, overrides, batch, **job):
    """Log-probabilities of all levels, then one training step, on this rank's share of the batch.

    Returns:
        `old` (rows, L, μ) log-probabilities of the response, the actor's `metrics`, and its full `weights` after it.
    """
    from verl.utils import tensordict_utils as tu

    config = compose_config(folder, *overrides, **job)
    worker = start_worker(config, "actor")
    old, trained = train(worker, config, batch)
    weights = full_weights(worker.actor.engine.module)
    metrics = {key: _plain(value) for key, value in tu.get(trained, "metrics").items()}
    return {"old": old.to_padded_tensor(0.0), "metrics": metrics, "weights": weights}


def saved_checkpoints(folder, overrides, batch, *, root, most, **job):
    """Checkpoints of the steps 1 to 3 as the trainer has them saved, with at most `most` kept.

    Returns:
        For each step the steps that `root` has an actor of, after the actor is saved and after old ones are dropped.
    """
    worker = start_worker(compose_config(folder, *overrides, **job), "actor")
    there = []
    for step in (1, 2, 3):
        worker.save_checkpoint(f"{root}/global_step_{step}/actor", None, step, most)
        saved = sorted(int(path.parent.name[12:]) for path in Path(root).glob("global_step_*/actor"))
        worker.drop_old_checkpoints(most)
        there.append((saved, sorted(int(path.parent.name[12:]) for path in Path(root).glob("global_step_*/actor"))))
    return there


class InProcess:
    """Stands for the Ray handle of a server that lives in this process; `arrived` logs (name, bytes) of each sync."""

    def __init__(self, server):
        self._server = server
        self.arrived = []

    def __getattr__(self, method):
        async def call(*args, **options):
            if method == "receive_bucket":
                self._log(args[0])
            return await getattr(self._server, method)(*args, **options)

        return SimpleNamespace(remote=call)

    def _log(self, bucket):
        if not self.arrived or self.arrived[-1]["whole"]:
            self.arrived.append({"names": [], "bytes": 0, "whole": False})
        self.arrived[-1]["names"] += [name for name, *_ in bucket.entries]
        self.arrived[-1]["bytes"] += sum(math.prod(shape) * dtype.itemsize for _, shape, dtype, _ in bucket.entries)
        self.arrived[-1]["whole"] = bucket.is_last


def lora_syncs(folder, overrides, batch, **job):
    """Three weight syncs of a LoRA actor by verl's `update_weights`, a training step between them, to a server of this
    rank; the same weights go merged to a second server.

    Returns:
        For each sync `arrived` (see `InProcess`), and `logits` and `answers` of the servers `adapter` and `merged`.
    """
    from maskgrpo_plugin.workers.rollout.server import DiffusionServer
    from maskgrpo_plugin.workers.rollout.weight_transfer import send_weights

    config = compose_config(folder, *overrides, **job)
    worker = start_worker(config, "actor_rollout")
    settings = config.actor_rollout_ref
    servers = {name: DiffusionServer(settings.rollout, settings.model, 0) for name in ("adapter", "merged")}
    handle = worker.rollout._server = InProcess(servers["adapter"])

    async def sync(step):
        await worker.update_weights(global_steps=step, mode="naive")
        merged = worker.actor.engine._merged_lora_per_tensor_param()
        await send_weights(merged, servers["merged"].receive_bucket, bucket_bytes=1 << 20, device=torch.device("cpu"))
        found = {"arrived": list(handle.arrived)}
        handle.arrived.clear()
        for name, server in servers.items():
            canvases = [torch.tensor([p + r]) for p, r in zip(batch["prompts"], batch["responses"], strict=True)]
            with torch.inference_mode():
                logits = [server.model(canvas).logits for canvas in canvases]
            asked = [
                server.generate("r", prompt, {"temperature": 1.0, "seed": row})
                for row, prompt in enumerate(batch["prompts"])
            ]
            found[name] = {"logits": logits, "answers": [o.token_ids for o in await asyncio.gather(*asked)]}
        return found

    async def steps():
        found = [await sync(0)]
        for step in (1, 2):
            train(worker, config, batch)
            found.append(await sync(step))
        return found

    return asyncio.run(steps())


def forking():
    """The multiprocessing context of new processes that have `PRELOADED` imported, and nothing else of this one."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with mock.patch.dict(os.environ, NO_DEVICES):
        forkserver.ensure_running()
    return context


def run_ranks(world, folder, overrides, batch, out, run=one_step, **job):
    """`run` on `world` new processes; their results in the order of the ranks. `job`: see `compose_config`."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    arguments = (world, port, str(folder), list(overrides), batch, str(out), run, job, dict(os.environ))
    mp.start_processes(_rank_main, args=arguments, nprocs=world, start_method=forking().get_start_method())
    return [torch.load(Path(out) / f"rank_{rank}.pt", weights_only=True) for rank in range(world)]


def _rank_main(rank, world, port, folder, overrides, batch, out, run, job, environment):
    os.environ.clear()  # what the first ranks of this session were started with
    os.environ.update(
        environment
        | NO_DEVICES
        | {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    )
    torch.set_num_threads(1)
    results = [run(folder, option, batch, **job) for option in overrides]
    Path(out).mkdir(parents=True, exist_ok=True)
    torch.save(results, Path(out) / f"rank_{rank}.pt")
    torch.distributed.destroy_process_group()


def _plain(value):
    from verl.utils.metric import Metric

    values = value if isinstance(value, list) else [value]
    return [float(v.aggregate() if isinstance(v, Metric) else v) for v in values if v is not None]


def on_one_rank(folder, variants, batch, out):
    """What one rank's SGD step gives under each variant's overrides, by its name."""
    results = run_ranks(1, folder, [[*SGD, *variant] for variant in variants.values()], batch, out)[0]
    return dict(zip(variants, results, strict=True))
