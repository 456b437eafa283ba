"""Who shares a mask, by `mask_sharing`."""

from maskgrpo_plugin.trainer.image_log import distinct_words
from maskgrpo_plugin.trainer.maskgrpo_sync import mask_keys, mean_reward_components

ROWS, SESSIONS = [7, 7, 9, 9], [0, 1, 0, 1]


def test_index_shares_between_completions_of_the_same_number():
    keys = mask_keys(ROWS, SESSIONS, "index")
    assert keys[0] == keys[2] and keys[1] == keys[3] and keys[0] != keys[1]


def test_group_shares_within_the_group():
    keys = mask_keys(ROWS, SESSIONS, "group")
    assert keys[0] == keys[1] and keys[2] == keys[3] and keys[0] != keys[2]


def test_sample_shares_with_nobody():
    assert len(set(mask_keys(ROWS, SESSIONS, "sample"))) == 4


def test_reward_components_are_averaged_over_the_samples_that_have_them():
    infos = [{"acc": 1, "format": 0.5}, {"acc": 0.0, "note": "text"}, {}]
    assert mean_reward_components(infos) == {"reward/acc": 0.5, "reward/format": 0.5}


def test_a_failed_scorers_number_is_no_part_of_the_mean():
    infos = [{"clip": 0.8, "clip_failed": 0.0}, {"clip": 0.0, "clip_failed": 1.0}]
    assert mean_reward_components(infos) == {"reward/clip": 0.8, "reward/clip_failed": 0.5}


def test_captions_leave_out_what_all_prompts_begin_with():
    prompts = ["a handwritten seven", "a handwritten two", "a handwritten seven"]
    assert distinct_words(prompts) == ["seven", "two", "seven"]
    assert distinct_words(["a cat", "a cat"]) == ["a cat", "a cat"]
    assert distinct_words(["a cat", "the cat"]) == ["a cat", "the cat"]
