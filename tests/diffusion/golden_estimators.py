"""The published estimators' golden batch, its stand-in model, and comparisons with what published code computed."""

import re
from types import SimpleNamespace

import pytest
import torch
from golden_files import GOLDEN_DIR, missing
from safetensors.torch import load_file

FOLDER = GOLDEN_DIR / "estimators"
MARKS = [
    pytest.mark.golden,
    pytest.mark.skipif(missing("estimators") is not None, reason=str(missing("estimators"))),
]
CLOSE = {"atol": 1e-9, "rtol": 1e-9}


def prefixes(file, pattern):
    """The distinct groups of `pattern` among the keys of a method's file, as parameters of a test."""
    name = f"{file}.safetensors"
    if reason := missing("estimators", name):
        return [pytest.param("", marks=pytest.mark.skip(reason=reason), id="absent")]
    found = {match.group(0) for key in load_file(FOLDER / name) if (match := re.match(pattern, key))}
    if not found:
        raise ValueError(f"{FOLDER / name} holds no key like {pattern}")
    return sorted(found)


class StandIn:
    """The README's stand-in model, with one of its parameter sets."""

    def __init__(self, name):
        stored = load_file(FOLDER / "model.safetensors")
        self.w = {key.removeprefix(f"{name}."): value for key, value in stored.items() if key.startswith(f"{name}.")}
        if name == "new":
            for value in self.w.values():
                value.requires_grad_()

    def logits(self, canvas, attention=1.0, positions=None):
        """Logits at every position, (B, L, V); `attention` (…, L, L) is 1 where a row may look at a column."""
        w = self.w
        positions = torch.arange(canvas.shape[1]) if positions is None else positions
        e = w["E"][canvas]
        mix = w["M"][positions[..., :, None], positions[..., None, :]] * attention
        return torch.tanh((e + mix @ e + w["P"][positions]) @ w["W1"].T) @ w["W2"].T

    def log_probs(self, canvas, tokens, attention=1.0, positions=None):
        """Log-probability of the true token at every position, (B, L)."""
        found = self.logits(canvas, attention, positions).log_softmax(-1)
        return found.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def actor(settings, counted):
    """What verl gives a loss, for a batch that is the whole global batch."""
    info = {"dp_size": 1, "batch_num_tokens": int(counted.sum()), "global_batch_size": int(counted.any(-1).sum())}
    epsilon = settings["epsilon"]
    return SimpleNamespace(
        clip_ratio=epsilon,
        clip_ratio_low=epsilon,
        clip_ratio_high=epsilon,
        clip_ratio_c=settings.get("clip_ratio_c", 3.0),
        kl_loss_coef=settings.get("beta", 0.0),
        global_batch_info=info | {"loss_scale_factor": None},
    )


def estimates(models, rows, passes, fold, attention=1.0):
    """ℓ̂ of every model by name, (B, L), with gradients for the new one."""
    found = {}
    for name, model in models.items():
        with torch.set_grad_enabled(name == "new"):
            found[name] = fold(passes, [model.log_probs(one.noisy, rows.tokens, attention) for one in passes])
    return found


def assert_loss_and_gradient(loss, stored, prefix, models):
    """Compare a loss and its gradient in the new model's parameters."""
    torch.testing.assert_close(loss, stored[f"{prefix}loss"], **CLOSE)
    loss.backward()
    for name, value in models["new"].w.items():
        torch.testing.assert_close(value.grad, stored[f"{prefix}grad.{name}"], **CLOSE)
