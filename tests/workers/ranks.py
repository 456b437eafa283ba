"""Runs the plugin's training worker on CPU ranks without Ray, and makes the batches that it takes."""

import os
import socket
from pathlib import Path

import torch
import torch.multiprocessing as mp
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parents[2]


def compose_config(folder, *overrides, name="quickstart", folder_key="quickstart_dir"):
    """The whole config of a run, as verl's entry point composes it; `folder_key` is the key that gets the folder."""
    import verl.trainer

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        search = f"hydra.searchpath=[file://{Path(verl.trainer.__file__).parent / 'config'}]"
        place = [f"{folder_key}={folder}"] if folder_key else []
        return compose(name, overrides=[search, *place, *overrides])


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
    if "uncond_ids" in pick:
        tensors["uncond_ids"] = jagged(pick["uncond_ids"], torch.long)
    return tu.get_tensordict(tensors, non_tensor_dict=non_tensors)


def one_step(folder, overrides, batch, **job):
    """Log-probabilities of all levels, then one training step, on this rank's share of the batch.

    Returns:
        `old` (rows, L, μ) log-probabilities of the response, the actor's `metrics`, and its full `weights` after it.
    """
    import verl  # noqa: F401
    from torch.distributed.tensor import DTensor
    from verl.utils import tensordict_utils as tu
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.utils.padding import response_from_nested

    import maskgrpo_plugin.registration  # noqa: F401
    from maskgrpo_plugin.workers.actor import MaskGRPOWorker

    config = compose_config(folder, *overrides, **job)
    worker = MaskGRPOWorker(config=config.actor_rollout_ref, role="actor")
    worker.init_model()
    estimation = omega_conf_to_dataclass(config.algorithm.estimation)
    plan = estimation.plan(3, stop_token_ids=(2, 3))
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    share = len(batch["prompts"]) // world
    data = to_tensordict(batch, range(rank * share, (rank + 1) * share), estimation=plan)
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
    trained = worker.actor.train_mini_batch(data)
    weights = {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in worker.actor.engine.module.named_parameters()
    }
    metrics = {key: _plain(value) for key, value in tu.get(trained, "metrics").items()}
    return {"old": old.to_padded_tensor(0.0), "metrics": metrics, "weights": weights}


def run_ranks(world, folder, overrides, batch, out, **job):
    """`one_step` on `world` new processes; their results in the order of the ranks. `job`: see `compose_config`."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_rank_main, args=(world, port, str(folder), list(overrides), batch, str(out), job), nprocs=world)
    return [torch.load(Path(out) / f"rank_{rank}.pt", weights_only=True) for rank in range(world)]


def _rank_main(rank, world, port, folder, overrides, batch, out, job):
    os.environ.update(
        {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    )
    torch.set_num_threads(1)
    results = [one_step(folder, option, batch, **job) for option in overrides]
    Path(out).mkdir(parents=True, exist_ok=True)
    torch.save(results, Path(out) / f"rank_{rank}.pt")
    torch.distributed.destroy_process_group()


def _plain(value):
    from verl.utils.metric import Metric

    values = value if isinstance(value, list) else [value]
    return [float(v.aggregate() if isinstance(v, Metric) else v) for v in values if v is not None]
