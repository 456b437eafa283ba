"""The sampler's record: which runs are refused for want of it, and what fits."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from ranks import compose_config

from maskgrpo_plugin.diffusion.estimators import ESTIMATORS, Estimator, register_estimator
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.workers.rollout.checks import check_sampler
from maskgrpo_plugin.workers.rollout.record_checks import check_record

ROLLOUT = "actor_rollout_ref.rollout"
OPTIONS = f"{ROLLOUT}.sampler.options"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A function from overrides to the composed quickstart."""
    folder = tmp_path_factory.mktemp("run")
    return lambda *overrides: compose_config(folder, *overrides)


def check(run):
    check_sampler(run)
    check_record(run)


@pytest.mark.parametrize("overrides", [
    ["method=agrpo"],
    ["method=agrpo", f"{OPTIONS}.top_p=1.0", f"{OPTIONS}.top_k=0"],
    ["method=agrpo", f"{OPTIONS}.ordering=low_confidence", f"+{OPTIONS}.parallel=threshold"],
    ["method=agrpo", f"+{OPTIONS}.cfg_scale=0.5", "algorithm.estimation.cfg_scale=0.5"],
    ["method=tracerl"],
    ["method=justgrpo"],
])  # fmt: skip
def test_what_fits(config, overrides):
    check(config(*overrides))


@pytest.mark.parametrize(("overrides", "message"), [
    (["method=agrpo", f"{ROLLOUT}.calculate_log_probs=false"],
     rf"{ROLLOUT}\.calculate_log_probs=False is not usable; use true: the estimator sampled_steps reads "
     "sampler_log_prob, sampler_entropy, sampler_allowed of the rollout"),
    (["method=espo", f"{ROLLOUT}.calculate_log_probs=true"],
     r"calculate_log_probs=True .* use false: the estimator elbo does not read the sampler's record"),
    (["method=agrpo", f"+{OPTIONS}.cache=dual"],
     r"options\.cache='dual' .* the sampler's record needs none: these caches are approximate"),
    (["method=agrpo", f"{OPTIONS}.ordering=low_confidence", f"+{OPTIONS}.parallel=credit"],
     r"options\.parallel='credit' .* draws from other logits than the model's"),
    (["method=agrpo", f"{OPTIONS}.top_k=0"], r"options\.top_k=0 .* with top_p=0.99: 1 or more"),
    (["method=agrpo", f"{ROLLOUT}.temperature=0", f"{ROLLOUT}.n=1"],
     r"rollout\.temperature=0 .* use more than 0: a greedy sampler draws nothing"),
    (["method=agrpo", f"+{OPTIONS}.cfg_scale=0.5"],
     r"algorithm\.estimation\.cfg_scale=0\.0 .* use 0\.5, the guidance of actor_rollout_ref\.rollout\.sampler"),
    (["method=agrpo", "algorithm.estimation.cfg_scale=1.5"], r"estimation\.cfg_scale=1\.5 .* use 0\.0, the guidance"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_would(config, overrides, message):
    with pytest.raises(OptionError, match=message):
        check(config(*overrides))


def test_a_sampler_that_keeps_no_record_is_named(config):
    message = r"sampler\.name='maskgit' .* and this one keeps none: use block_causal or semi_autoregressive"
    with pytest.raises(OptionError, match=message):
        check_record(config("method=agrpo", f"{ROLLOUT}.sampler.name=maskgit"))


def test_a_field_that_no_sampler_records_is_named(config):
    @register_estimator("test_recorded")
    @dataclass(frozen=True)
    class Recorded(Estimator):
        requires: ClassVar[tuple[str, ...]] = ("reveal_step", "hidden_state")

        def passes(self, rows, *, seed, step, update):
            return []

    try:
        with pytest.raises(
            OptionError, match=r"it reads hidden_state of the rollout, and samplers record reveal_step, sampler_l"
        ):
            check_record(config("algorithm.estimation.estimator=test_recorded"))
    finally:
        ESTIMATORS._entries.pop("test_recorded")
