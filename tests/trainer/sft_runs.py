"""Supervised runs on CPU ranks without torchrun, for `ranks.run_ranks`."""

import json
import os

import torch
from ranks import compose_config, full_weights, run_ranks

WHOLE_ANSWERS = ["denoising.block_length=null", "denoising.block_weights=row"]  # LLaDA's objective


def plain_descent(rate):
    """Settings under which a step is the rate times the gradient."""
    return [
        "optim.optimizer=SGD",
        f"optim.lr={rate}",
        "optim.betas=null",
        "optim.override_optimizer_config=null",
        "optim.clip_grad=1000.0",
        "optim.weight_decay=0.0",
        "optim.lr_warmup_steps=0",
        "optim.lr_scheduler_type=constant",
    ]


def descend(model, loss, rate):
    """A step of plain descent on a loss; returns the loss's value."""
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= rate * parameter.grad
    return float(loss.detach())


def run(world, folder, options, out):
    """The results of each list of options for the quickstart's supervised run, of rank 0."""
    placed = [[*each, f"trainer.default_local_dir={out}/{n}"] for n, each in enumerate(options)]
    return run_ranks(world, folder, placed, None, out, run=train, name="sft_quickstart")[0]


def train(folder, overrides, batch, **job):
    """One run of the trainer on this rank.

    Returns:
        `weights` after it, whole, and `metrics` by step where this rank logs.
    """
    import verl  # noqa: F401

    import maskgrpo_plugin.registration  # noqa: F401
    from maskgrpo_plugin.sft import make_trainer
    from maskgrpo_plugin.trainer.sft_checks import check_sft

    config = compose_config(folder, *overrides, **job)
    check_sft(config, int(os.environ["WORLD_SIZE"]))
    log = os.path.join(config.trainer.default_local_dir, "log.jsonl")
    os.makedirs(os.path.dirname(log), exist_ok=True)
    os.environ["VERL_FILE_LOGGER_PATH"] = log
    os.environ["LOCAL_RANK"] = os.environ["RANK"]
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend="gloo")
    trainer = make_trainer(config)
    trainer.fit()
    metrics = {}
    if os.environ["RANK"] == "0":
        with open(log) as lines:
            metrics = {str(row["step"]): row["data"] for row in map(json.loads, lines)}
    return {"weights": full_weights(trainer.engine.module), "metrics": metrics}
