"""Estimators and losses against figures of the published code, on its own masks (README of the golden folder)."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_estimators import (
    CLOSE,
    FOLDER,
    MARKS,
    StandIn,
    actor,
    assert_loss_and_gradient,
    estimates,
    prefixes,
)
from safetensors.torch import load_file
from verl.trainer.ppo.core_algos import agg_loss

from maskgrpo_plugin.diffusion.estimators import Pass, build_estimator, make_pass
from maskgrpo_plugin.diffusion.estimators.coupled import coupled_passes
from maskgrpo_plugin.diffusion.estimators.sampled_steps import step_passes
from maskgrpo_plugin.diffusion.likelihood import SamplingDistribution
from maskgrpo_plugin.trainer.advantages import group_advantages
from maskgrpo_plugin.trainer.losses.agrpo import agrpo_loss
from maskgrpo_plugin.trainer.losses.maskgrpo import maskgrpo_loss
from maskgrpo_plugin.trainer.losses.tracerl import tracerl_block_loss, tracerl_loss

pytestmark = MARKS


def token_mean_loss(found, advantages, counted, settings):
    """PPO and β·k3 against the reference, both as a mean over the counted tokens, as verl adds them."""
    config = actor(settings, counted)
    spread = advantages[:, None].expand(counted.shape)
    policy, _ = maskgrpo_loss(found["old"], found["new"], spread, counted, "token-mean", config)
    difference = found["ref"] - found["new"]
    kl = agg_loss(difference.exp() - difference - 1, counted, "token-mean", **config.global_batch_info)
    return policy + settings["beta"] * kl


def assert_log_probs(found, stored, prefix, counted):
    """Compare estimates and ratios (rows, L) where they count with stored ones, (rows, L) or of the response alone."""
    keys = {f"logp_{name}": value for name, value in found.items()} | {"ratio": (found["new"] - found["old"]).exp()}
    for name, got in keys.items():
        expected = stored[f"{prefix}{name}"]
        skipped = got.shape[1] - expected.shape[1]
        kept = counted[:, skipped:]
        torch.testing.assert_close(got.detach()[:, skipped:][kept], expected[kept], **CLOSE)


def test_the_stand_in_is_the_readmes(batch):
    logits = StandIn("new").logits(batch["check.canvas"].long())
    torch.testing.assert_close(logits.detach(), batch["check.logits_new"], **CLOSE)


@pytest.mark.parametrize(("normalisation", "name"), [
    ("center", "center"), ("leave_one_out", "loo"), ("zscore", "zpop"),
])  # fmt: skip
def test_advantages(batch, normalisation, name):
    groups = np.array([f"g{int(g)}" for g in batch["group"]], dtype=object)
    got = group_advantages(batch["rewards"].double(), groups, normalisation=normalisation)
    torch.testing.assert_close(got, batch[f"advantage.{name}"].double(), **CLOSE)


@pytest.mark.parametrize("prefix", prefixes("coupled_grpo", r"it\d+\."))
def test_coupled_grpo(prefix, rows, batch, meta, models):
    stored = load_file(FOLDER / "coupled_grpo.safetensors")
    ratio = 1 / stored[f"{prefix}weights"][1].item()
    first = stored[f"{prefix}in_first_mask"].bool()
    passes = coupled_passes(rows.tokens, rows.response, first, ratio, rows.mask_token_id)
    assert torch.equal(torch.stack([one.noisy for one in passes]), stored[f"{prefix}canvas"].long())
    assert torch.equal(torch.stack([one.scored for one in passes]), stored[f"{prefix}masked"].bool())
    prompt = rows.tokens.shape[1] - stored[f"{prefix}pass_logp_new"].shape[-1]
    for name, model in models.items():
        got = torch.stack([model.log_probs(one.noisy, rows.tokens)[:, prompt:] for one in passes])
        torch.testing.assert_close(got.detach(), stored[f"{prefix}pass_logp_{name}"], **CLOSE)
    found = estimates(models, rows, passes, build_estimator("coupled").fold)
    assert_log_probs(found, stored, prefix, rows.response)
    counted = batch["response_mask"].bool()
    loss = token_mean_loss(found, stored["advantages"], counted, meta["coupled_grpo"])
    assert_loss_and_gradient(loss, stored, prefix, models)


@pytest.mark.parametrize("prefix", prefixes("diffu_grpo", r"it\d+\."))
def test_diffu_grpo(prefix, rows, meta, models):
    stored = load_file(FOLDER / "diffu_grpo.safetensors")
    settings = meta["diffu_grpo"]
    estimator = build_estimator("diffu_grpo", prompt_mask_ratio=settings["p_mask_prompt"])
    [drawn] = estimator.passes(rows, seed=0, step=0, update=0)
    canvas = stored[f"{prefix}canvas"].long()
    assert torch.equal(drawn.noisy[rows.response], canvas[rows.response])
    passes = [make_pass(canvas, drawn.scored)]
    found = estimates(models, rows, passes, estimator.fold)
    counted = estimator.counted(rows, passes)
    assert_log_probs(found, stored, prefix, counted)
    loss = token_mean_loss(found, stored["advantages"], counted, settings)
    assert_loss_and_gradient(loss, stored, prefix, models)


@pytest.mark.parametrize("prefix", prefixes("d2_stepmerge", r"N\d+\.(prompt_clean\.)?"))
def test_d2_stepmerge(prefix, rows, batch, meta, models):
    stored = load_file(FOLDER / "d2_stepmerge.safetensors")
    settings = meta["d2_stepmerge"]
    segments = int(re.search(r"\d+", prefix).group())
    # published: the tail is masked or visible by its reveal steps, and the loss ends with the first end token
    estimator = build_estimator("trajectory", segments=segments, steps=settings["steps"], canvas="full", end_tokens=1)
    passes = estimator.passes(rows, seed=0, step=0, update=0)
    canvases, own = stored[f"{prefix}canvas"].long(), stored[f"{prefix}in_segment"].bool()
    assert not own[len(passes) :].any()  # segments after the last revealed token
    for one, canvas, segment in zip(passes, canvases, own, strict=False):
        compared = torch.ones_like(rows.response) if "prompt_clean" in prefix else rows.response
        assert torch.equal(one.noisy[compared], canvas[compared])
        assert torch.equal(one.scored, segment & batch["response_mask"].bool())
    passes = [make_pass(canvas, one.scored) for canvas, one in zip(canvases, passes, strict=False)]
    found = estimates(models, rows, passes, estimator.fold)
    counted = estimator.counted(rows, passes)
    assert_log_probs(found, stored, prefix, counted)
    loss = token_mean_loss(found, stored["advantages"], counted, settings)
    assert_loss_and_gradient(loss, stored, prefix, models)


def slice_loss(rows, models, stored, prefix, settings):
    """TraceRL's loss over the stored rows, which are slices; their log-probabilities are compared as well."""
    sample = stored[f"{prefix}row_sample"].long()
    canvas, scored = stored[f"{prefix}canvas"].long(), stored[f"{prefix}in_loss"].bool()
    tokens = rows.tokens[sample]
    found = {}
    for name in ("new", "old"):
        with torch.set_grad_enabled(name == "new"):
            found[name] = models[name].log_probs(canvas, tokens)
    assert_log_probs(found, stored, prefix, scored)
    spread = stored["advantages"][sample][:, None].expand(scored.shape)
    loss, _ = tracerl_loss(found["old"], found["new"], spread, scored, config=actor(settings, scored))
    return loss


@pytest.mark.parametrize("prefix", prefixes("tracerl", r"full\.shrink\d+\.(post\d+\.)?"))
def test_tracerl(prefix, rows, meta, models):
    stored = load_file(FOLDER / "tracerl.safetensors")
    kept = re.search(r"post(\d+)", prefix)
    estimator = build_estimator(
        "trajectory",
        shrink=int(re.search(r"shrink(\d+)", prefix).group(1)),
        canvas="full",
        end_tokens=int(kept.group(1)) if kept else 0,
    )
    passes = estimator.passes(rows, seed=0, step=0, update=0)
    scored = torch.stack([one.scored for one in passes], dim=1)
    sample, number = scored.any(-1).nonzero(as_tuple=True)
    canvas = torch.stack([one.noisy for one in passes], dim=1)[sample, number]
    scored = scored[sample, number]
    assert torch.equal(sample, stored[f"{prefix}row_sample"].long())
    assert torch.equal(canvas, stored[f"{prefix}canvas"].long())
    assert torch.equal(scored, stored[f"{prefix}in_loss"].bool())
    loss = slice_loss(rows, models, stored, prefix, meta["tracerl"])
    assert_loss_and_gradient(loss, stored, prefix, models)


@pytest.mark.parametrize("prefix", prefixes("tracerl", r"block\.shrink\d+\.(post\d+\.)?"))
def test_tracerl_of_blocks(prefix, rows, meta, models):
    """Blocks are counted from the response's start there: our rows hold the response alone. With `post_num`, the
    published code keeps that many pads of each round, ours of the response: canvases and loss are compared, not they.
    """
    stored = load_file(FOLDER / "tracerl.safetensors")
    prompt, length = meta["batch"]["prompt_length"], meta["batch"]["response_length"]
    if "post" not in prefix:
        cut = {name: getattr(rows, name)[:, prompt:] for name in ("tokens", "response", "prompt", "attended")}
        alone = replace(
            rows, **cut, reveal_step=rows.reveal_step[:, prompt:], block_length=meta["tracerl"]["block_size"]
        )
        shrink = int(re.search(r"shrink(\d+)", prefix).group(1))
        estimator = build_estimator("trajectory", shrink=shrink, canvas="full", end_tokens=0)
        passes = estimator.passes(alone, seed=0, step=0, update=0)
        scored = torch.stack([one.scored for one in passes], dim=1)
        sample, number = scored.any(-1).nonzero(as_tuple=True)
        canvas = torch.stack([one.noisy for one in passes], dim=1)[sample, number]
        assert torch.equal(sample, stored[f"{prefix}row_sample"].long())
        assert torch.equal(canvas, stored[f"{prefix}extended_ids"].long()[:, prompt + length :])
        assert torch.equal(scored[sample, number], stored[f"{prefix}in_loss"].bool()[:, prompt:])
    ids, positions = stored[f"{prefix}extended_ids"].long(), stored[f"{prefix}position_ids"].long()
    attention, own = stored["block.shrink1.attention"].double(), stored[f"{prefix}row_sample"].long()
    scored, targets = stored[f"{prefix}in_loss"].bool()[:, prompt:], rows.tokens[own, prompt:]
    found = {}
    for name in ("new", "old"):
        with torch.set_grad_enabled(name == "new"):
            logits = models[name].logits(ids, attention, positions)[:, prompt + length :]
        found[name] = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    for name, value in found.items():
        expected = stored[f"{prefix}logp_{name}"][:, -length:]
        torch.testing.assert_close(value.detach()[scored], expected[scored], **CLOSE)
    config = actor(meta["tracerl"], scored)
    config.global_batch_info["loss_scale_factor"] = length
    spread = stored[f"{prefix}row_advantage"][:, None].expand(scored.shape)
    loss, _ = tracerl_block_loss(found["old"], found["new"], spread, scored, config=config)
    assert_loss_and_gradient(loss, stored, prefix, models)


@pytest.mark.parametrize("prefix", prefixes("unigrpo_dllm_rl", r"(random_masking|coupled)\."))
def test_unigrpo_of_dllm_rl(prefix, rows, meta, models):
    stored = load_file(FOLDER / "unigrpo_dllm_rl.safetensors")
    loss = slice_loss(rows, models, stored, prefix, meta["unigrpo_dllm_rl"])
    assert_loss_and_gradient(loss, stored, prefix, models)


class AGRPO:
    """AGRPO's rows and losses of the golden batch, with the stored record of one variant."""

    def __init__(self, rows, models, stored, prefix, settings):
        prompt = rows.tokens.shape[1] - stored[f"{prefix}logp_sampler"].shape[1]
        before = torch.zeros(len(rows.tokens), prompt)
        in_place = lambda name: torch.cat([before, stored[f"{prefix}{name}"]], dim=1)  # noqa: E731
        self.rows = replace(
            rows, sampler_log_prob=in_place("logp_sampler"), sampler_entropy=in_place("entropy_sampler")
        )
        ids = torch.arange(stored[f"{prefix}allowed_tokens"].shape[-1])
        allowed = torch.where(stored[f"{prefix}allowed_tokens"].bool(), ids, -1).sort(dim=-1, descending=True).values
        self.allowed = torch.nn.functional.pad(allowed, (0, 0, prompt, 0), value=-1)
        self.models, self.settings = models, settings

    def log_probs(self, name, one):
        """(B, L), as the sampler would have drawn the tokens."""
        with torch.set_grad_enabled(name == "new"):
            drawn = SamplingDistribution(self.settings["temperature"], (), self.allowed.flatten(0, 1))
            logits = self.models[name].logits(one.noisy)
            found = drawn.logits(logits.flatten(0, 1)).view(logits.shape).log_softmax(-1)
            return found.gather(-1, self.rows.tokens.unsqueeze(-1)).squeeze(-1)

    def loss(self, passes, beta, rows_in_mean):
        """Of all passes as rows of one batch, whose mean is over `rows_in_mean`."""
        each = {name: torch.cat([self.log_probs(name, one) for one in passes]) for name in ("new", "ref")}
        scored = torch.cat([one.scored for one in passes])
        weight = torch.cat([one.loss_weight for one in passes]).unsqueeze(-1).expand(scored.shape)
        config = actor(self.settings | {"beta": beta}, scored)
        config.global_batch_info["global_batch_size"] = rows_in_mean
        if beta:
            config.ref_log_prob = each["ref"]
        spread = self.advantages.repeat(len(passes)).unsqueeze(-1).expand(scored.shape)
        old = self.rows.sampler_log_prob.repeat(len(passes), 1)
        loss, metrics = agrpo_loss(old, each["new"], spread, scored, config=config, rollout_is_weights=weight)
        assert ("actor/kl_loss" in metrics) == bool(beta)
        return loss


AGRPO_PREFIXES = prefixes("agrpo", r"(uniform|entropy)\.(stratified|iid)\.beta[\d.]+?\.(?=[a-z])")


def agrpo(rows, models, prefix, meta):
    """The stored file, and the batch of one variant."""
    stored, settings = load_file(FOLDER / "agrpo.safetensors"), meta["agrpo"]
    found = AGRPO(rows, models, stored, prefix, settings)
    found.advantages = stored["advantages"]
    return stored, found, settings


@pytest.mark.parametrize("prefix", AGRPO_PREFIXES)
def test_agrpo(prefix, rows, meta, models):
    """The published sum is divided by the size of one group, whatever the number of groups; our mean is over all."""
    stored, batch, settings = agrpo(rows, models, prefix, meta)
    weighting, sampling, beta = re.match(r"(\w+)\.(\w+)\.beta([\d.]+)\.$", prefix).groups()
    draws = settings["mc_samples"]
    options = {"weighting": weighting, "stratified": sampling == "stratified", "draws": draws}
    estimator = build_estimator("sampled_steps", **options)
    steps, probability = estimator.probabilities(batch.rows)
    assert torch.equal((steps >= 0).sum(-1) - 1, stored[f"{prefix}last_step"])
    if weighting == "entropy":
        torch.testing.assert_close(probability, stored[f"{prefix}step_probability"], **CLOSE)
    drawn = stored[f"{prefix}steps"]
    weight = 1 / ((steps >= 0).sum(-1, keepdim=True) * probability.gather(1, drawn))  # step s is the s-th of them
    torch.testing.assert_close(weight, stored[f"{prefix}weight"], **CLOSE)
    passes = step_passes(batch.rows, drawn, weight)
    prompt = rows.tokens.shape[1] - stored[f"{prefix}in_loss"].shape[-1]
    assert torch.equal(torch.stack([one.noisy for one in passes]), stored[f"{prefix}canvas"].long())
    assert torch.equal(torch.stack([one.scored for one in passes])[..., prompt:], stored[f"{prefix}in_loss"].bool())
    for one, expected in zip(passes, stored[f"{prefix}logp_new_at_step"], strict=True):
        torch.testing.assert_close(batch.log_probs("new", one)[one.scored].detach(), expected, **CLOSE)
    loss = batch.loss(passes, float(beta), draws * settings["num_generations"])
    assert_loss_and_gradient(loss, stored, prefix, models)
    # the estimator's own choice at the middle of each published step's share of [0, 1) is that step, with that weight
    upper = probability.cumsum(-1).gather(1, drawn)
    chosen, own = estimator.choose(batch.rows, upper - probability.gather(1, drawn) / 2)
    assert torch.equal(chosen, drawn)
    torch.testing.assert_close(own, stored[f"{prefix}weight"], **CLOSE)


@pytest.mark.parametrize("weighting", ["uniform", "entropy"])
def test_agrpos_expectation_is_the_mean_over_all_steps(weighting, rows, meta, models):
    """Each step as often as it is drawn, times its weight: the same for both ways to draw, without noise."""
    prefix = next(iter(p for p in AGRPO_PREFIXES if p.startswith("uniform")))
    stored, batch, settings = agrpo(rows, models, prefix, meta)
    steps, probability = build_estimator("sampled_steps", weighting=weighting).probabilities(batch.rows)
    count = (steps >= 0).sum(-1, keepdim=True)
    weight = torch.where(steps >= 0, 1 / (count * probability.clamp(min=1e-300)), 0.0)
    passes = step_passes(batch.rows, steps, probability * weight)
    loss = batch.loss(passes, 0.0, settings["num_generations"])
    torch.testing.assert_close(loss, stored["derived.expected_loss_uniform"], **CLOSE)
    loss.backward()
    for name, value in models["new"].w.items():
        torch.testing.assert_close(value.grad, stored[f"derived.expected_uniform.grad.{name}"], **CLOSE)


def test_a_pass_of_zero_weight_gives_no_gradient_and_no_nan(rows, models):
    nothing = torch.zeros_like(rows.response)
    one = Pass(rows.tokens, nothing, nothing.double())
    found = build_estimator("maskgrpo").fold([one], [models["new"].log_probs(rows.tokens, rows.tokens)])
    found.sum().backward()
    assert not found.any()
    assert all(not value.grad.any() for value in models["new"].w.values())
