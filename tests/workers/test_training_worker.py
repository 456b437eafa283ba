"""The training worker itself on one and two CPU ranks: gradients against the formula, micro-batches, estimators."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import ranks
from transformers import AutoModelForCausalLM

from maskgrpo_plugin.diffusion.levels import mask_levels
from maskgrpo_plugin.diffusion.random import combine_seed
from maskgrpo_plugin.diffusion.remasking import remask

DYNAMIC = [
    "actor_rollout_ref.actor.use_dynamic_bsz=true",
    "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=true",
    "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=true",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=32",
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=48",
]
COUPLED = ["algorithm.estimation.estimator=coupled"]
TRAJECTORY = ["algorithm.estimation.estimator=trajectory", "algorithm.estimation.mu=1"]
VARIANTS = {
    "plain": [],
    "micro": [*ranks.ONE_BY_ONE, "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2"],
    "dynamic": DYNAMIC,
    "one_level": ["algorithm.estimation.mu=1"],
    "inverse_t": ["algorithm.estimation.mu=1", "algorithm.estimation.options.time_weighting=inverse_t"],
    "tail": ["algorithm.estimation.mu=1", "algorithm.estimation.canvas=full"],
    "visible": ["algorithm.estimation.canvas=visible"],
    "visible_one": ["algorithm.estimation.mu=1", "algorithm.estimation.canvas=visible"],
    "trimmed": ["algorithm.estimation.mu=1", "algorithm.estimation.canvas=trimmed"],
    "random": ["algorithm.estimation.remasking=random", "algorithm.estimation.gamma=0.3"],
    "unigrpo": ["algorithm.estimation.estimator=unigrpo"],
    "diffu_grpo": ["algorithm.estimation.estimator=diffu_grpo"],
    "coupled": COUPLED,
    "coupled_micro": [*COUPLED, *ranks.ONE_BY_ONE, "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1"],
    "trajectory": TRAJECTORY,
    "trajectory_micro": [*TRAJECTORY, *ranks.ONE_BY_ONE],
    "trajectory_dynamic": [*TRAJECTORY, *DYNAMIC],
    "tracerl": [*TRAJECTORY, "actor_rollout_ref.actor.policy_loss.loss_mode=tracerl"],
    "gmpo": ["actor_rollout_ref.actor.policy_loss.loss_mode=maskgrpo_gmpo"],
    "gmpo_micro": [*ranks.ONE_BY_ONE, "actor_rollout_ref.actor.policy_loss.loss_mode=maskgrpo_gmpo"],
    "gspo": [
        "actor_rollout_ref.actor.policy_loss.loss_mode=gspo",
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
    ],
    "vanilla": ["actor_rollout_ref.actor.policy_loss.loss_mode=vanilla"],
    "entropy": ["actor_rollout_ref.actor.entropy_coeff=0.1"],
    "checkpointing": ["actor_rollout_ref.model.enable_gradient_checkpointing=true"],
    "lora": ["actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.lora_alpha=8"],
}
VARIANTS = {name: ["algorithm.estimation.mu=2", *changes] for name, changes in VARIANTS.items()}


@pytest.fixture(scope="module")
def batch():
    return ranks.make_batch(8)


@pytest.fixture(scope="module")
def one_rank(tiny_run, batch, tmp_path_factory):
    return ranks.on_one_rank(tiny_run, VARIANTS, batch, tmp_path_factory.mktemp("one_rank"))


def row_tensors(batch, row):
    """Tokens (1, n) and response flags (1, n) of one completion, unpadded; response tokens after an end are no part."""
    prompt, response = batch["prompts"][row], batch["responses"][row]
    tokens = torch.tensor([prompt + response])
    end = response.index(2) + 1 if 2 in response else len(response)
    flags = torch.zeros_like(tokens, dtype=torch.bool)
    flags[0, len(prompt) : len(prompt) + end] = True
    return tokens, flags


def reference_weights(
    folder, batch, levels, *, beta=0.01, low=0.2, high=0.2, lr=0.5, seed=0, step=3, weights=None, hide_tail=True
):
    """SGD on the objective written token by token, a completion at a time, with full logits and no padding."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    mask_token_id = model.config.mask_token_id

    def masked_log_probs(level):
        found = []
        for row in range(len(batch["prompts"])):
            tokens, flags = row_tensors(batch, row)
            noised = remask(
                tokens,
                flags,
                levels[level],
                "ar_like",
                seed=combine_seed(seed, step, level),
                keys=torch.tensor([batch["mask_key"][row]]),
                mask_token_id=mask_token_id,
            )
            noisy = noised.noisy.clone()
            if hide_tail:
                end = int(flags[0].nonzero().max()) + 1
                noisy[0, end:] = mask_token_id
            log_probs = model(noisy).logits.log_softmax(-1)
            at = noised.masked[0].nonzero().flatten().tolist()
            found.append([log_probs[0, n, tokens[0, n]] for n in at])
        return found

    with torch.no_grad():
        old = [[[value.item() for value in row] for row in masked_log_probs(level)] for level in range(len(levels))]
    for level in range(len(levels)):
        total, count = 0.0, 0
        for row, values in enumerate(masked_log_probs(level)):
            a = batch["advantages"][row]
            for value, before in zip(values, old[level][row], strict=True):
                ratio = torch.exp(value - before)
                surrogate = torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)
                difference = (before - 0.1) - value
                total = total - surrogate + beta * (torch.exp(difference) - difference - 1)
                count += 1
        model.zero_grad()
        factor = weights[level] if weights else 1.0
        (factor * total / count).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= lr * parameter.grad
    return dict(model.named_parameters())


def assert_same(got, expected, atol=2e-6):
    assert sorted(got) == sorted(expected)
    for name in expected:
        torch.testing.assert_close(
            got[name], expected[name].detach(), atol=atol, rtol=0, msg=lambda m, n=name: f"{n} {m}"
        )


def test_two_levels_update_as_the_formula_says(tiny_run, batch, one_rank):
    assert_same(one_rank["plain"]["weights"], reference_weights(tiny_run, batch, mask_levels(2, 0.6)))


def test_a_visible_tail_is_shown_to_the_model(tiny_run, batch, one_rank):
    expected = reference_weights(tiny_run, batch, mask_levels(2, 0.6), hide_tail=False)
    assert_same(one_rank["visible"]["weights"], expected)


def test_one_level_and_its_weight_by_time(tiny_run, batch, one_rank):
    levels = mask_levels(1, 0.6)
    assert_same(one_rank["one_level"]["weights"], reference_weights(tiny_run, batch, levels))
    expected = reference_weights(tiny_run, batch, levels, weights=[1 / levels[0]])
    assert_same(one_rank["inverse_t"]["weights"], expected)


@pytest.mark.parametrize("variant", ["micro", "dynamic", "checkpointing"])
def test_micro_batches_change_nothing(one_rank, variant):
    torch.testing.assert_close(one_rank[variant]["old"], one_rank["plain"]["old"], atol=1e-6, rtol=0)
    assert_same(one_rank[variant]["weights"], one_rank["plain"]["weights"])


@pytest.mark.parametrize("variant", ["trajectory_micro", "trajectory_dynamic"])
def test_passes_of_a_separable_estimator_may_lie_in_any_micro_batch(one_rank, variant):
    torch.testing.assert_close(one_rank[variant]["old"], one_rank["trajectory"]["old"], atol=1e-6, rtol=0)
    assert_same(one_rank[variant]["weights"], one_rank["trajectory"]["weights"])


def test_passes_that_are_added_stay_together(one_rank):
    torch.testing.assert_close(one_rank["coupled_micro"]["old"], one_rank["coupled"]["old"], atol=1e-6, rtol=0)
    assert_same(one_rank["coupled_micro"]["weights"], one_rank["coupled"]["weights"])


def test_passes_that_do_not_vary_are_asked_of_the_old_policy_once(one_rank):
    assert one_rank["trajectory"]["old"].shape[-1] == 1
    assert one_rank["plain"]["old"].shape[-1] == 2


def test_gmpo_does_not_depend_on_micro_batches(one_rank):
    assert_same(one_rank["gmpo_micro"]["weights"], one_rank["gmpo"]["weights"])


def test_two_ranks_update_as_one(tiny_run, batch, one_rank, tmp_path):
    variants = ("plain", "gmpo", "trajectory", "trajectory_dynamic", "coupled", "tracerl")
    results = ranks.run_ranks(2, tiny_run, [[*ranks.SGD, *VARIANTS[name]] for name in variants], batch, tmp_path)
    for number, variant in enumerate(variants):
        first, second = (result[number] for result in results)
        assert_same(first["weights"], second["weights"], atol=0)
        assert_same(first["weights"], one_rank[variant]["weights"])
        old = torch.cat([first["old"], second["old"]])
        torch.testing.assert_close(old, one_rank[variant]["old"], atol=1e-6, rtol=0)


def test_first_ratio_is_exactly_one(one_rank):
    for variant in ("plain", "random", "coupled", "trajectory", "diffu_grpo", "unigrpo", "lora"):
        assert max(one_rank[variant]["metrics"]["level_1/log_ratio_abs_max"]) == 0.0, variant


def test_log_probabilities_are_of_the_masked_tokens_alone(batch, one_rank):
    for row in range(8):
        _, flags = row_tensors(batch, row)
        length = int(flags.sum())
        old = one_rank["plain"]["old"][row]
        assert (old[length:] == 0).all()
        assert (old[:length, 1] != 0).sum() >= length - 1  # the last level is 0.999
        whole = one_rank["diffu_grpo"]["old"][row]
        assert (whole[:length] != 0).all() and (whole[length:] == 0).all()
    assert (one_rank["tail"]["old"][1] != 0).sum() > (one_rank["one_level"]["old"][1] != 0).sum()


def test_each_level_logs_its_masked_share_and_log_probability(batch, one_rank):
    plain = one_rank["plain"]
    length = sum(int(row_tensors(batch, row)[1].sum()) for row in range(8))
    for level in range(2):
        values = plain["old"][..., level]
        share = plain["metrics"][f"level_{level + 1}/masked_share"]
        assert sum(share) / len(share) == pytest.approx((values != 0).sum().item() / length, abs=0.05)
    first = plain["old"][..., 0]
    logged = plain["metrics"]["level_1/log_prob_mean"][0]
    assert logged == pytest.approx(first[first != 0].mean().item(), abs=0.1)


def test_coupled_masks_cover_every_token_once(batch, one_rank):
    for row in range(8):
        _, flags = row_tensors(batch, row)
        assert (one_rank["coupled"]["old"][row, : int(flags.sum())] != 0).all()


def test_a_trimmed_canvas_changes_rows_with_a_tail_only(one_rank):
    full, trimmed = one_rank["visible_one"]["old"], one_rank["trimmed"]["old"]
    torch.testing.assert_close(trimmed[0::2], full[0::2], atol=1e-6, rtol=0)
    assert (trimmed[1::2] - full[1::2]).abs().max() > 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_estimator_and_loss_gives_finite_metrics_and_moves_the_weights(one_rank, variant):
    result = one_rank[variant]
    for key, values in result["metrics"].items():
        if not key.startswith("perf/"):
            assert all(math.isfinite(value) for value in values), key
    start = one_rank["plain"]["weights"]
    assert result["metrics"]["grad_norm"][0] > 0
    if variant not in ("plain", "micro", "dynamic", "checkpointing", "vanilla", "lora"):
        assert any(not torch.equal(result["weights"][name], start[name]) for name in start)


def test_verls_own_clipped_loss_gives_the_same_update(one_rank):
    assert_same(one_rank["vanilla"]["weights"], one_rank["plain"]["weights"])


def test_entropy_bonus_is_logged(one_rank):
    assert 0 < one_rank["entropy"]["metrics"]["actor/entropy_loss"][0] <= math.log(26)


def test_lora_trains_adapters_only(tiny_run, one_rank):
    before = dict(AutoModelForCausalLM.from_pretrained(tiny_run / "model").named_parameters())
    weights = one_rank["lora"]["weights"]
    adapters = [name for name in weights if "lora_" in name]
    layers = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in adapters}
    assert layers == {"q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj"}
    assert any(weights[name].abs().max() > 0 for name in adapters if "lora_B" in name)
    for name, value in before.items():
        matches = [w for w in weights if w.replace(".base_layer", "").endswith(name) and "lora_" not in w]
        assert len(matches) == 1, name
        torch.testing.assert_close(weights[matches[0]], value.detach(), atol=0, rtol=0)
