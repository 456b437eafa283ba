"""Supervised runs on CPU ranks without torchrun, for `ranks.run_ranks`."""

import json
import os

import torch
from ranks import compose_config, full_weights


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
