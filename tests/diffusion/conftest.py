"""Fixtures of the published estimators' golden batch."""

import json

import pytest
import torch
from golden_estimators import FOLDER, StandIn
from safetensors.torch import load_file

from maskgrpo_plugin.diffusion.estimators import Rows


@pytest.fixture(scope="module")
def meta():
    """Settings of the golden numbers of the published estimators, by method."""
    return json.loads((FOLDER / "meta.json").read_text())


@pytest.fixture(scope="module")
def batch():
    """Their batch."""
    return load_file(FOLDER / "batch.safetensors")


@pytest.fixture(scope="module")
def rows(batch, meta):
    """Their completions."""
    response = ~batch["prompt_mask"].bool()
    return Rows(
        tokens=batch["tokens"].long(),
        response=response,
        prompt=~response,
        attended=torch.ones_like(response),
        keys=torch.arange(len(response)),
        mask_token_id=meta["batch"]["mask_token_id"],
        stop_token_ids=(meta["batch"]["end_token_id"],),
        reveal_step=batch["reveal_step"].long(),
    )


@pytest.fixture
def models():
    """Their stand-in model with new, old and reference parameters."""
    return {name: StandIn(name) for name in ("new", "old", "ref")}
