"""Sequence-level estimators and losses against figures of the published code, on its own masks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_estimators import CLOSE, FOLDER, MARKS, actor, assert_loss_and_gradient, estimates, prefixes
from safetensors.torch import load_file

from maskgrpo_plugin.diffusion.estimators import build_estimator, make_pass
from maskgrpo_plugin.diffusion.estimators.elbo import QUADRATURES
from maskgrpo_plugin.trainer.advantages import contrast_weights, valid_weights
from maskgrpo_plugin.trainer.losses import LOSSES
from maskgrpo_plugin.trainer.preference import bound_gradients, preferences

pytestmark = MARKS


def loss_of(name, found, advantages, counted, settings, *, agg="seq-mean-token-mean", reference=False, **options):
    """The plugin's loss of rows that are the whole global batch."""
    config = actor(settings, counted)
    if reference:
        config.ref_log_prob = found["ref"]
    loss = LOSSES.build(name, **options)
    spread = advantages[:, None].expand(counted.shape)
    return loss(found["old"], found["new"], spread, counted, agg, config)[0]


def hidden_tail(stored, prefix=""):
    """(B, 1, L) what each position may look at."""
    return stored[f"{prefix}attended"].double()[:, None, :]


def assert_canvases(passes, canvases, where):
    for one, canvas in zip(passes, canvases, strict=True):
        assert torch.equal(one.noisy[where], canvas.long()[where])


def assert_scores(found, counted, stored, prefix, names=("new", "old", "ref")):
    for name in names:
        scores = (found[name] * counted).sum(-1).detach()
        torch.testing.assert_close(scores, stored[f"{prefix}elbo_{name}"], **CLOSE)


@pytest.mark.parametrize("prefix", prefixes("espo", r"(it\d+|trimmed)\."))
def test_espo(prefix, rows, batch, meta, models):
    stored, settings = load_file(FOLDER / "espo.safetensors"), meta["espo"]
    trimmed = prefix == "trimmed."
    estimator = build_estimator(
        "elbo", draws=settings["num_mc"], complement=True, canvas="trimmed" if trimmed else "full"
    )
    passes = estimator.passes_of(rows, list(stored[f"{prefix}masked"].bool()))
    attention = hidden_tail(stored, prefix) if trimmed else 1.0
    assert torch.equal(estimator.attended(rows), stored[f"{prefix}attended"] if trimmed else rows.attended)
    assert_canvases(passes[::2], stored[f"{prefix}canvas"], estimator.attended(rows))
    if not trimmed:
        assert_canvases(passes[1::2], stored[f"{prefix}canvas_complement"], rows.attended)
    found = estimates(models, rows, passes, estimator.fold, attention)
    counted = estimator.counted(rows, passes)
    assert torch.equal(counted, batch["response_mask"].bool() if trimmed else rows.response)
    assert_scores(found, counted, stored, prefix)
    divisor = {"divisor": "length", "length": meta["batch"]["response_length"]} if trimmed else {"divisor": "counted"}
    loss = loss_of("sequence_ppo", found, stored["advantages"], counted, settings, reference=True, **divisor)
    assert_loss_and_gradient(loss, stored, prefix, models)


@pytest.mark.parametrize("prefix", prefixes("gdpo", r"[a-z]+(-\d)?\.mc\d+\.(tail_hidden\.)?"))
def test_gdpo(prefix, rows, meta, models):
    stored, settings = load_file(FOLDER / "gdpo.safetensors"), meta["gdpo"]
    rule, draws = prefix.split(".")[:2]
    hidden = "tail_hidden" in prefix
    canvas = "trimmed" if hidden else "visible"
    estimator = build_estimator("elbo", nodes=rule, draws=int(draws.removeprefix("mc")), canvas=canvas)
    assert [t for t, _ in QUADRATURES[rule] for _ in range(estimator.draws)] == pytest.approx(
        stored[f"{prefix}times"].tolist(), abs=1e-12
    )
    masks = list(stored[f"{prefix}masked"].bool())
    drawn = estimator.masks(rows, 0)
    assert [mask.sum(-1).tolist() for mask in drawn] == [mask.sum(-1).tolist() for mask in masks]
    passes = estimator.passes_of(rows, masks)
    assert_canvases(passes, stored[f"{prefix}canvas"], estimator.attended(rows))
    attention = estimator.attended(rows).double()[:, None, :]
    found = estimates(models, rows, passes, estimator.fold, attention)
    torch.testing.assert_close(found["new"].detach(), stored[f"{prefix}position_new"], **CLOSE)
    counted = estimator.counted(rows, passes)
    assert_scores(found, counted, stored, prefix, ("new", "old"))
    loss = loss_of("sequence_ppo", found, stored["advantages"], counted, settings)
    assert_loss_and_gradient(loss, stored, prefix, models)


def by_draw(models, rows, estimator, passes, attention=1.0):
    """ℓ̂ of each draw as a row of its own, (B·draws, L) by model, draws of a completion one after another; the tokens
    that count, and each row's completion.
    """
    per_draw = len(passes) // estimator.estimates
    runs = [passes[n : n + per_draw] for n in range(0, len(passes), per_draw)]
    each = [estimates(models, rows, run, estimator.fold, attention) for run in runs]
    found = {name: torch.stack([one[name] for one in each], dim=1).flatten(0, 1) for name in each[0]}
    counted = estimator.counted(rows, passes).repeat_interleave(len(runs), 0)
    return found, counted, torch.arange(len(rows.tokens)).repeat_interleave(len(runs))


@pytest.mark.parametrize("prefix", prefixes("bgpo_dare", r""))
def test_bgpo(prefix, rows, meta, models):
    stored, settings = load_file(FOLDER / "bgpo_dare.safetensors"), meta["bgpo_dare"]
    draws, length = settings["mc_num"], meta["batch"]["response_length"]
    estimator = build_estimator("elbo", draws=draws, apart=True, canvas="trimmed")
    passes = estimator.passes_of(rows, list(stored["masked"].bool().unbind(1)))
    assert_canvases(passes, stored["canvas"].unbind(1), estimator.attended(rows))
    found, counted, row = by_draw(models, rows, estimator, passes, hidden_tail(stored))
    for name in ("new", "old"):
        scores = (found[name] * counted).sum(-1).detach().view(-1, draws)
        torch.testing.assert_close(scores, stored[f"elbo_draws_{name}"], **CLOSE)
    options = {"divisor": "length", "length": length}
    loss = loss_of("bgpo", found, stored["advantages"][row], counted, settings, **options)
    assert_loss_and_gradient(loss, stored, "", models)


@pytest.mark.parametrize("divided", [True, False])
@pytest.mark.parametrize("prefix", prefixes("vrpo_dare", r""))
def test_vrpo(prefix, divided, rows, meta, models):
    """DARE's loss, whose bounds are divided by the responses' length, and the paper's."""
    stored, beta = load_file(FOLDER / "vrpo_dare.safetensors"), meta["vrpo_dare"]["beta"]
    estimator = build_estimator("elbo", draws=meta["vrpo_dare"]["n"], canvas="trimmed")
    passes = estimator.passes_of(rows, list(stored["masked"].bool().unbind(1)))
    assert_canvases(passes, stored["canvas"].unbind(1), estimator.attended(rows))
    found = estimates(models, rows, passes, estimator.fold, hidden_tail(stored))
    counted = estimator.counted(rows, passes)
    pairs = torch.stack([stored["chosen"], stored["rejected"]], dim=1).flatten()
    bounds = {name: (value * counted).sum(-1) for name, value in found.items()}
    for name in ("new", "ref"):
        torch.testing.assert_close(bounds[name].detach(), stored[f"elbo_draws_{name}"].mean(-1), **CLOSE)
    new, reference = bounds["new"][pairs], bounds["ref"][pairs].detach()
    divisor = meta["batch"]["response_length"] if divided else 1.0
    loss = preferences(new, reference, beta, divisor).losses.mean()
    if not divided:
        torch.testing.assert_close(loss, stored["derived.loss_raw_elbo"], **CLOSE)
        return
    torch.testing.assert_close(loss, stored["loss"], **CLOSE)
    weights = torch.full((len(pairs) // 2,), 2 / len(pairs), dtype=torch.float64)
    linear = (new * bound_gradients(new, reference, weights, beta, divisor)).sum()
    assert_loss_and_gradient(linear - linear.detach() + loss.detach(), stored, "", models)


@pytest.mark.parametrize("prefix", prefixes("ebpo_dare", r""))
def test_ebpo(prefix, rows, meta, models):
    stored, settings = load_file(FOLDER / "ebpo_dare.safetensors"), meta["ebpo_dare"]
    estimator = build_estimator(
        "elbo", draws=settings["mc_num"], block_length=settings["block_length"], canvas="trimmed"
    )
    passes = estimator.passes_of(rows, list(stored["masked"].bool().unbind(1)))
    assert_canvases(passes, stored["canvas"].unbind(1), estimator.attended(rows))
    share = torch.stack([estimator.draws * one.weight for one in passes], dim=1)
    masked = stored["masked"].bool()
    torch.testing.assert_close(share[masked], 1 / stored["p"][masked], **CLOSE)
    start, found = meta["batch"]["prompt_length"], {}
    for name, model in models.items():
        with torch.set_grad_enabled(name == "new"):
            each = []
            for one in passes:
                line = torch.cat([rows.tokens, one.noisy[:, start:]], dim=1)
                true = torch.cat([rows.tokens, rows.tokens[:, start:]], dim=1)
                values = model.log_probs(line, true, stored["attention"].double(), stored["position_ids"].long())
                each.append(torch.cat([values[:, :start], values[:, rows.tokens.shape[1] :]], dim=1))
            found[name] = estimator.fold(passes, each)
    counted = estimator.counted(rows, passes)
    assert_scores(found, counted, stored, "")
    squared = (found["new"] - found["ref"]).mul(counted).sum(-1).square() / 2
    torch.testing.assert_close(squared.detach(), stored["kl_k2_rows"], **CLOSE)
    loss = loss_of("sequence_ppo", found, stored["advantages"], counted, settings, divisor="none")
    assert_loss_and_gradient(loss, stored, "", models)


@pytest.mark.parametrize("prefix", prefixes("gdsd", r"eps[\d.]+\."))
def test_gdsd(prefix, rows, meta, models):
    stored, settings = load_file(FOLDER / "gdsd.safetensors"), meta["gdsd"]
    draws = settings["num_mc"]
    estimator = build_estimator("elbo", draws=draws, complement=True, weighting="none", apart=True, canvas="full")
    passes = estimator.passes_of(rows, list(stored[f"{prefix}masked"].bool()))
    assert_canvases(passes[::2], stored[f"{prefix}canvas"], rows.attended)
    found, counted, row = by_draw(models, rows, estimator, passes)
    for name in models:
        scores = (found[name] * counted).sum(-1).detach().view(-1, draws)
        torch.testing.assert_close(scores, stored[f"{prefix}score_{name}"], **CLOSE)
    # published: the sum over draws, and the KL's mean; ours is that loss divided by the number of draws
    own = {"epsilon": float(prefix[3:-1]), "beta": settings["beta"] / draws}
    advantages = stored["advantages"][row]
    loss = loss_of("gdsd", found, advantages, counted, own, reference=True, psi=settings["psi"])
    assert_loss_and_gradient(draws * loss, stored, prefix, models)


@pytest.mark.parametrize(("options", "canvas", "tail"), [
    ({"draws": 4, "complement": True}, "full", "full"),
    ({"draws": 4, "complement": True}, "trimmed", "tail_hidden"),
    ({"draws": 4}, "trimmed", "tail_hidden"),
    ({"draws": 4}, "visible", "tail_visible"),
    ({"draws": 3, "block_length": 99}, "trimmed", "tail_hidden"),
])  # fmt: skip
def test_the_estimate_is_unbiased(options, canvas, tail, rows, batch, models):
    """Against the bound by enumeration of all masks; (n + 1)/l in place of n/l, or the other way round, is found."""
    if f"exact_elbo.{tail}.new" not in batch:
        pytest.skip(f"{FOLDER / 'batch.safetensors'} holds no exact_elbo")
    estimator = build_estimator("elbo", canvas=canvas, **options)
    attention = estimator.attended(rows).double()[:, None, :]
    scores = []
    for step in range(500):
        passes = estimator.passes(rows, seed=5, step=step, update=0)
        with torch.no_grad():
            values = [models["new"].log_probs(one.noisy, rows.tokens, attention) for one in passes]
        scores.append(estimator.fold(passes, values).sum(-1))
    mean, error = torch.stack(scores).mean(0), torch.stack(scores).std(0) / len(scores) ** 0.5
    expected = batch[f"exact_elbo.{tail}.new"]
    assert ((mean - expected).abs() <= 4 * error).all()
    wrong = rows.response.sum(-1) / (rows.response.sum(-1) + 1)
    assert ((wrong * mean - expected).abs() > 4 * error).any()
    assert ((mean / wrong - expected).abs() > 4 * error).any()


@pytest.mark.parametrize("prefix", prefixes("spg", r"(block_)?random\.\w+\.prompt_\w+\."))
def test_spg(prefix, rows, batch, meta, models):
    stored, settings = load_file(FOLDER / "spg.safetensors"), meta["spg"]
    estimator = build_estimator("spg", draws=settings["num_t"], beta=settings["eubo_beta"])
    start = meta["batch"]["prompt_length"]
    answer = batch["response_mask"].bool()
    assert torch.equal(estimator.maskable(rows), answer)
    passes = []
    masks, canvases = (stored[f"{prefix}{name}"].unbind(1) for name in ("masked", "canvas"))
    for masked, canvas in zip(masks, canvases, strict=True):
        [one] = estimator.passes_of(rows, canvas.long(), [masked.bool()])
        assert torch.equal(one.noisy, canvas.long())
        passes.append(one)
    scored = torch.stack([one.scored[:, start:] for one in passes], dim=1)
    assert torch.equal(scored, stored[f"{prefix}in_loss"].bool())
    found = estimates({"new": models["new"]}, rows, passes, estimator.fold)["new"]
    counted = estimator.counted(rows, passes)
    bounds = found.sum(1) / counted.sum(-1, keepdim=True)
    for n, name in enumerate(("elbo", "eubo")):
        torch.testing.assert_close(bounds[:, n].detach(), stored[f"{prefix}{name}"], **CLOSE)
    bound = {"elbo": "lower", "eubo": "upper", "mix": "mix"}[prefix.split(".")[1]]
    both = {"old": found.detach(), "new": found}
    own = {"bound": bound, "mix_weight": settings["mix_weight"]}
    loss = loss_of("spg", both, stored["advantages"], counted, {"epsilon": 0.2}, agg="token-mean", **own)
    assert_loss_and_gradient(loss, stored, prefix, models)


@pytest.mark.parametrize("prefix", prefixes("wd1", r"(group0|whole_batch)\."))
def test_wd1(prefix, rows, meta, models):
    """The published softmax is over the rows of a micro-batch, which are one group here."""
    stored = load_file(FOLDER / "wd1.safetensors")
    count = len(stored[f"{prefix}canvas"])
    rows = replace(
        rows,
        **{name: getattr(rows, name)[:count] for name in ("tokens", "response", "prompt", "attended", "keys")},
        reveal_step=None,
    )
    advantages = stored["advantages"][:count]
    weights = contrast_weights(advantages, np.array(["g"] * count))
    published = stored[f"{prefix}weight_plus"] - stored[f"{prefix}weight_minus"]
    torch.testing.assert_close(weights / count, published, **CLOSE)
    estimator = build_estimator("diffu_grpo", prompt_mask_ratio=meta["wd1"]["p_mask_prompt"])
    [drawn] = estimator.passes(rows, seed=0, step=0, update=0)
    passes = [make_pass(stored[f"{prefix}canvas"].long(), drawn.scored)]
    assert torch.equal(drawn.noisy[rows.response], passes[0].noisy[rows.response])
    new = estimates({"new": models["new"]}, rows, passes, estimator.fold)["new"]
    found = {"old": new.detach(), "new": new}
    loss = loss_of("reinforce", found, weights, drawn.scored, {"epsilon": 0.2}, divisor="none")
    assert_loss_and_gradient(loss, stored, prefix, models)


@pytest.mark.parametrize("prefix", prefixes("justgrpo", r""))
def test_justgrpo(prefix, rows, meta, models):
    """The published gradient over the whole batch as one group; its loss is 0 up to a constant."""
    stored = load_file(FOLDER / "justgrpo.safetensors")
    length = meta["batch"]["response_length"]
    estimator = build_estimator("positions", sampled=length, canvas="full")
    passes = estimator.passes(rows, seed=0, step=0, update=0)
    assert torch.equal(torch.stack([one.noisy for one in passes]), stored["canvas"].long())
    weights = valid_weights(stored["advantages"], np.array(["g"] * len(rows.tokens)))
    assert int((stored["advantages"] != 0).sum()) == stored["valid_samples"]
    found, counted, row = by_draw({"new": models["new"]}, rows, estimator, passes)
    found["old"] = found["new"].detach()
    per_token = (found["new"].detach().sum(-1) / length).view(-1, length)
    torch.testing.assert_close(per_token, stored["logp_new"], **CLOSE)
    loss = loss_of("reinforce", found, weights[row], counted, {"epsilon": 0.2}, divisor="length", length=length)
    loss.backward()
    for name, value in models["new"].w.items():
        torch.testing.assert_close(value.grad, stored[f"grad.{name}"], **CLOSE)


@pytest.mark.parametrize("sampled", [1, 3, 5, 8, 11])
def test_sampled_positions_are_unbiased(sampled, rows, models, meta):
    """The mean over many steps is the sum over all positions, whether or not `sampled` divides their number."""
    length, start = meta["batch"]["response_length"], meta["batch"]["prompt_length"]
    with torch.no_grad():
        every = build_estimator("positions", sampled=length, canvas="full")
        passes = every.passes(rows, seed=0, step=0, update=0)
        values = [models["new"].log_probs(one.noisy, rows.tokens) for one in passes]
        exact = torch.stack([every.fold([p], [v]) for p, v in zip(passes, values, strict=True)]).sum((0, 2)) / length
        by_position = torch.stack([v[:, start + n] for n, v in enumerate(values)], dim=1)
    estimator = build_estimator("positions", sampled=sampled, canvas="full")
    scores = []
    for step in range(3000):
        passes = estimator.passes(rows, seed=1, step=step, update=0)
        at = torch.stack([one.scored.long().argmax(-1) - start for one in passes], dim=1)
        scores.append(length * by_position.gather(1, at).mean(-1))
    mean, error = torch.stack(scores).mean(0), torch.stack(scores).std(0) / len(scores) ** 0.5
    assert ((mean - exact).abs() <= 4 * error + 1e-9).all()
