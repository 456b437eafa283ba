"""Losses of scores and of a record in the training worker: their KL term, draws as rows, micro-batches and ranks."""

import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
import ranks

ESPO = ["method=espo", "algorithm.estimation.mu=2", "actor_rollout_ref.actor.kl_loss_coef=1.0"]
BGPO = ["method=bgpo", "algorithm.estimation.mu=2", "algorithm.estimation.options.draws=3"]
VARIANTS = {
    "espo": ESPO,
    "espo_micro": [*ESPO, *ranks.ONE_BY_ONE],
    "espo_no_kl": [*ESPO, "actor_rollout_ref.actor.use_kl_loss=false"],
    "bgpo": BGPO,
    "bgpo_micro": [*BGPO, *ranks.ONE_BY_ONE],
}
AGRPO = ["method=agrpo", "algorithm.estimation.options.draws=3"]


@pytest.fixture(scope="module")
def batch():
    return ranks.make_batch(8)


@pytest.fixture(scope="module")
def one_rank(tiny_run, batch, tmp_path_factory):
    return ranks.on_one_rank(tiny_run, VARIANTS, batch, tmp_path_factory.mktemp("one_rank"))


def largest_difference(weights, others):
    assert sorted(weights) == sorted(others)
    return max((weights[name] - others[name]).abs().max().item() for name in weights)


def test_the_first_ratio_is_one_and_numbers_are_finite(one_rank):
    for name, result in one_rank.items():
        assert max(result["metrics"]["level_1/log_ratio_abs_max"]) == 0.0 or name.endswith("_micro"), name
        assert min(result["metrics"]["grad_norm"]) > 0
        for key, values in result["metrics"].items():
            assert key.startswith("perf/") or all(math.isfinite(value) for value in values), key
        assert max(result["metrics"]["level_2/log_ratio_abs_max"]) > 0


def test_old_values_are_kept_by_draw_and_by_update_where_masks_differ(one_rank):
    assert one_rank["espo"]["old"].shape[-1] == 2
    assert one_rank["bgpo"]["old"].shape[-1] == 3  # three draws, the same in both updates


@pytest.mark.parametrize("name", ["espo", "bgpo"])
def test_micro_batches_change_nothing(one_rank, name):
    assert largest_difference(one_rank[name]["weights"], one_rank[f"{name}_micro"]["weights"]) < 1e-5


def test_the_kl_term_is_of_scores(one_rank):
    """The reference lies 0.1 below each old estimate of the 8 response tokens: (8·0.1)²/(2·8) at the first update."""
    assert one_rank["espo"]["metrics"]["level_1/kl_of_scores"] == pytest.approx([0.8**2 / 16], rel=1e-4)
    assert "level_1/kl_of_scores" not in one_rank["espo_no_kl"]["metrics"]
    assert not any("kl_loss" in key for key in one_rank["espo"]["metrics"])
    assert largest_difference(one_rank["espo"]["weights"], one_rank["espo_no_kl"]["weights"]) > 1e-4


def test_two_ranks_update_as_one(tiny_run, batch, one_rank, tmp_path):
    names = ("espo", "bgpo")
    results = ranks.run_ranks(2, tiny_run, [[*ranks.SGD, *VARIANTS[name]] for name in names], batch, tmp_path)
    for number, name in enumerate(names):
        first, second = (result[number] for result in results)
        assert largest_difference(first["weights"], second["weights"]) == 0
        assert largest_difference(first["weights"], one_rank[name]["weights"]) < 1e-5
        torch.testing.assert_close(torch.cat([first["old"], second["old"]]), one_rank[name]["old"], atol=1e-6, rtol=0)


def test_the_loss_to_a_samplers_record_is_the_same_on_two_ranks_and_in_any_micro_batch(tiny_run, batch, tmp_path):
    recorded = ranks.with_record(batch)
    variants = {"agrpo": AGRPO, "agrpo_micro": [*AGRPO, *ranks.ONE_BY_ONE]}
    alone = ranks.on_one_rank(tiny_run, variants, recorded, tmp_path / "one")
    first, second = (found[0] for found in ranks.run_ranks(2, tiny_run, [[*ranks.SGD, *AGRPO]], recorded, tmp_path))
    assert largest_difference(first["weights"], second["weights"]) == 0
    for other in (alone["agrpo_micro"], first):
        assert largest_difference(alone["agrpo"]["weights"], other["weights"]) < 1e-5
    start = AutoModelForCausalLM.from_pretrained(tiny_run / "model").state_dict()
    assert largest_difference(alone["agrpo"]["weights"], start) > 1e-3
    assert 0.1 < max(alone["agrpo"]["metrics"]["actor/log_ratio_abs_max"])
