"""What a run's policy loss is refused for, and what fits it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "workers"))
from ranks import compose_config
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, register_policy_loss

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.trainer.loss_checks import check_loss
from maskgrpo_plugin.trainer.losses import LOSSES

LOSS = "actor_rollout_ref.actor.policy_loss"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A function from overrides to the composed quickstart."""
    folder = tmp_path_factory.mktemp("run")
    return lambda *overrides: compose_config(folder, *overrides)


@pytest.mark.parametrize(("overrides", "message"), [
    (["method=espo", f"{LOSS}.loss_mode=maskgrpo", f"{LOSS}.options.divisor=null"],
     r"options\.divisor=None .* the loss maskgrpo has no options"),
    (["algorithm.estimation.estimator=elbo"],
     r"loss_mode='maskgrpo' .* the estimator elbo gives a score per sequence: use bgpo or gdsd or reinforce or seq"),
    (["method=maskgrpo", f"{LOSS}.loss_mode=sequence_ppo"],
     r"loss_mode='sequence_ppo' .* maskgrpo gives a ratio per token: "
     r"use agrpo or maskgrpo or maskgrpo_gmpo or tracerl or tracerl_block or rein"),
    (["method=spg", f"{LOSS}.loss_mode=reinforce", f"~{LOSS}.options.bound", f"~{LOSS}.options.mix_weight"],
     r"loss_mode='reinforce' .* spg gives two bounds per sequence: use spg$"),
    (["method=wd1", f"{LOSS}.loss_mode=spg", f"~{LOSS}.options.divisor"], r"loss_mode='spg' .* a ratio per token"),
    (["method=justgrpo", f"{LOSS}.loss_mode=sequence_ppo"], r"samples of a sum: use reinforce$"),
    (["method=espo", "actor_rollout_ref.actor.kl_loss_type=low_var_kl"],
     r"kl_loss_type='low_var_kl' .* use k2: the loss sequence_ppo compares scores of sequences"),
    (["method=spg", "actor_rollout_ref.actor.use_kl_loss=true"], r"use_kl_loss=True .* the loss spg has no KL term"),
    (["method=bgpo", "actor_rollout_ref.actor.use_kl_loss=true"], r"use_kl_loss=True .* the loss bgpo has no KL"),
    (["method=agrpo", "actor_rollout_ref.actor.use_kl_loss=true", "actor_rollout_ref.actor.kl_loss_type=k2"],
     r"kl_loss_type='k2' .* use low_var_kl: the loss agrpo has a k3 term of its own"),
    (["method=gdsd", f"{LOSS}.options.psi=-1"], r"actor_rollout_ref\.actor\.policy_loss\.options\.psi=-1"),
    (["method=espo", f"{LOSS}.options.nope=1"], r"options\.nope=1 .* the loss sequence_ppo has no such option; it has"),
    (["method=bgpo", f"{LOSS}.options.length=null"], r"options\.length=None .* divisor=length and length go together"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_would(config, overrides, message):
    with pytest.raises(OptionError, match=message):
        check_loss(config(*overrides))


@pytest.mark.parametrize("name", ["espo", "gdpo", "bgpo", "ebpo", "gdsd", "spg", "wd1", "justgrpo", "tracerl", "agrpo"])
def test_a_methods_own_loss_fits(config, name):
    run = config(f"method={name}")
    check_loss(run)
    loss = run.actor_rollout_ref.actor.policy_loss.loss_mode
    assert loss in ("tracerl", "agrpo") or not run.actor_rollout_ref.actor.use_kl_loss or LOSSES[loss].has_kl


def test_verls_losses_of_tokens_fit_as_before(config):
    check_loss(config(f"{LOSS}.loss_mode=gspo"))


def test_a_loss_of_ones_own_may_take_any_estimate(config):
    @register_policy_loss("test_own")
    def own(**_):
        return 0.0, {}

    try:
        check_loss(config("algorithm.estimation.estimator=elbo", f"{LOSS}.loss_mode=test_own"))
    finally:
        POLICY_LOSS_REGISTRY.pop("test_own")
