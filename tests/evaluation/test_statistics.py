"""Intervals and pass@k against closed forms and enumeration; the summary against counts by hand."""

from itertools import combinations

import pytest

from maskgrpo_plugin.evaluation.statistics import pass_at_k, summarise, wilson_interval


def row(prompt, sample, acc, failure=None, **values):
    defaults = {"data_source": "sums", "length": 8, "score": acc, "effective_tokens": 2, "model_calls": 6, "reward": {}}
    return {"id": prompt, "sample": sample, "acc": acc, "failure": failure, **defaults, **values}


def test_wilson_solves_the_score_equation():
    for proportion, trials in ((0.3, 10), (0.0, 20), (1.0, 5), (0.845, 512)):
        low, high = wilson_interval(proportion, trials, z=2.0)
        for end in (low, high):
            assert (proportion - end) ** 2 == pytest.approx(4.0 * end * (1 - end) / trials, abs=1e-12)
        assert 0 <= low <= proportion <= high + 1e-12 <= 1 + 1e-12


def test_wilson_of_a_known_case():
    # 81 of 263, a standard worked example (Newcombe 1998, table I)
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize(("proportion", "trials"), [(0.5, 0), (1.1, 3), (-0.1, 3)])
def test_wilson_refuses_what_is_no_proportion(proportion, trials):
    with pytest.raises(ValueError, match="allowed"):
        wilson_interval(proportion, trials)


@pytest.mark.parametrize(("samples", "correct", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 4), (7, 3, 5)])
def test_pass_at_k_is_the_share_of_draws_with_a_correct_sample(samples, correct, k):
    draws = list(combinations(range(samples), k))
    share = sum(any(i < correct for i in draw) for draw in draws) / len(draws)
    assert pass_at_k(samples, correct, k) == pytest.approx(share)


def test_pass_at_k_needs_k_samples():
    with pytest.raises(ValueError, match="k=4"):
        pass_at_k(3, 1, 4)


def test_the_summary_counts_failures_as_wrong_and_prompts_as_trials():
    rows = [
        row("a", 0, 1.0, reward={"correct": 2.0}),
        row("a", 1, 0.0, reward={"correct": 0.0}),
        row("b", 0, 0.0, failure="timed_out", score=None, effective_tokens=0),
        row("b", 1, 0.0, reward={"correct": 1.0}),
        row("c", 0, 1.0, length=16),
    ]
    short, long = summarise(rows, ks=(1, 2))
    assert (short["prompts"], short["generations"], short["failures"]) == (2, 4, 1)
    assert short["accuracy"] == 0.25 and short["score"] == pytest.approx(1 / 3)
    assert (short["accuracy_low"], short["accuracy_high"]) == wilson_interval(0.25, 2)
    assert short["pass@1"] == 0.25 and short["pass@2"] == 0.5
    assert short["reward"] == {"correct": 1.0}
    assert short["effective_tokens"] == 1.5 and short["model_calls"] == 6.0 and short["calls_per_token"] == 4.0
    assert long["length"] == 16 and long["pass@2"] is None


def test_a_task_without_a_right_answer_has_no_accuracy():
    (summary,) = summarise([row("a", 0, None, score=0.4, effective_tokens=0)])
    assert "accuracy" not in summary and summary["score"] == 0.4 and summary["calls_per_token"] is None
