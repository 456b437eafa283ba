"""Actor under FSDP2's mixed precision and rollout server in bfloat16: the same log-probabilities, far into a text."""

import asyncio
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import ranks

LENGTH = 250
BFLOAT16 = [
    "actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype: bf16, reduce_dtype: fp32, buffer_dtype: fp32}",
    "actor_rollout_ref.rollout.dtype=bfloat16",
    "actor_rollout_ref.rollout.load_format=auto",
]


def score_by_both(folder, overrides, _batch, **job):
    """Log-probabilities of the actor and of a server with the same weights, on canvases that are masked at the end."""
    from maskgrpo_plugin.workers.rollout.server import DiffusionServer
    from maskgrpo_plugin.workers.scoring import Canvases

    config = ranks.compose_config(folder, *overrides, **job)
    worker = ranks.start_worker(config, "actor")
    server = DiffusionServer(config.actor_rollout_ref.rollout, config.actor_rollout_ref.model, 0)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(9, 20, (2, LENGTH), generator=generator)
    noisy = tokens.clone()
    noisy[:, LENGTH // 2 :: 2] = server.family.mask_token_id
    places = (noisy == server.family.mask_token_id).flatten().nonzero().squeeze(-1)
    canvases = Canvases(noisy.flatten().tolist(), [LENGTH] * 2, places.tolist(), tokens.flatten()[places].tolist())
    actor, server = worker.score(canvases), asyncio.run(server.score(canvases))
    return {"actor": actor.log_probs, "server": server.log_probs}


@pytest.fixture(scope="module")
def peaked_model(tiny_run, tmp_path_factory):
    """The tiny model with queries and keys large enough that positions matter."""
    import shutil

    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("peaked")
    shutil.copytree(tiny_run, folder, dirs_exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name or name.endswith("ff_out.weight"):
                parameter *= 8
    model.save_pretrained(folder / "model")
    return folder


def test_actor_and_server_compute_the_same_log_probabilities(peaked_model, tmp_path):
    (found,) = ranks.run_ranks(1, peaked_model, [BFLOAT16], None, tmp_path, score_by_both)[0]
    actor, server = torch.tensor(found["actor"]), torch.tensor(found["server"])
    assert len(actor) > 100 and actor.std() > 0.1
    assert (actor - server).abs().max() < 1e-3
