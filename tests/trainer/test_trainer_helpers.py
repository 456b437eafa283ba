"""Helpers of the trainer: means of reward components, captions."""

import numpy as np

from maskgrpo_plugin.rewards.failures import mean_reward_components
from maskgrpo_plugin.trainer.image_log import distinct_words
from maskgrpo_plugin.trainer.stages import jagged_field


def test_reward_components_are_averaged_over_the_samples_that_have_them():
    infos = [{"acc": 1, "format": 0.5}, {"acc": 0.0, "note": "text"}, {}]
    assert mean_reward_components(infos) == {"reward/acc": 0.5, "reward/format": 0.5}


def test_a_failed_scorers_number_is_no_part_of_the_mean():
    infos = [{"clip": 0.8, "clip_failed": 0.0}, {"clip": 0.0, "clip_failed": 1.0}]
    assert mean_reward_components(infos) == {"reward/clip": 0.8, "reward/clip_failed": 0.5}


def test_a_sample_whose_whole_reward_failed_counts_as_failed_and_not_as_wrong():
    infos = [{"acc": 1.0, "reward_failed": 0.0}, {"acc": 0.0, "reward_failed": 1.0}]
    assert mean_reward_components(infos) == {"reward/acc": 1.0, "reward/reward_failed": 0.5}
    images = [{"score": 0.0, "clip": 0.8, "clip_failed": 0.0, "hps": 0.0, "hps_failed": 1.0, "reward_failed": 1.0}]
    found = mean_reward_components(images)
    assert found["reward/clip"] == 0.8 and found["reward/hps_failed"] == found["reward/reward_failed"] == 1.0
    assert "reward/score" not in found and "reward/hps" not in found


def test_rows_that_fill_a_batch_up_have_fields_as_long_as_they_are():
    """verl's have one response token and a copy of another row's fields."""
    extras = [{"reveal_step": [2, 0, 1], "uncond_ids": [7, 8]}, {"reveal_step": [2, 0, 1], "uncond_ids": [7, 8]}]
    assert [row.tolist() for row in jagged_field("reveal_step", extras, [3, 1]).unbind()] == [[2, 0, 1], [2]]
    allowed = [{"ids": np.array([[5, 6], [7, -1]], dtype=np.int32)}, {"ids": np.array([[8]], dtype=np.int32)}]
    found = jagged_field("ids", allowed, [2, 1]).unbind()
    assert [row.tolist() for row in found] == [[[5, 6], [7, -1]], [[8, -1]]]
    assert [row.tolist() for row in jagged_field("uncond_ids", extras, [3, 1]).unbind()] == [[7, 8], [7, 8]]


def test_captions_leave_out_what_all_prompts_begin_with():
    prompts = ["a handwritten seven", "a handwritten two", "a handwritten seven"]
    assert distinct_words(prompts) == ["seven", "two", "seven"]
    assert distinct_words(["a cat", "a cat"]) == ["a cat", "a cat"]
    assert distinct_words(["a cat", "the cat"]) == ["a cat", "the cat"]
