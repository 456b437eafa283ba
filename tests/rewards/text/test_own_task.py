"""A text reward is one file: task, data sets, components and settings are registered with the scorer, nothing else."""

import pytest
from omegaconf import OmegaConf

from maskgrpo_plugin import rewards
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.imports import import_place
from maskgrpo_plugin.rewards.text import registry
from maskgrpo_plugin.rewards.text.config import TextRewardConfig, check_text_reward_config

FILE = """
from maskgrpo_plugin.errors import check_number
from maskgrpo_plugin.rewards import register_task


def settings(reward):
    most = (reward.get("length") or {}).get("most", 10)
    check_number("length.most", most, 1, whole=True)
    return {"most": most}


@register_task(
    "length",
    keys=("score", "acc", "short", "right"),
    extra=("bonus",),
    components=("short", "right"),
    data_sources=("me/lengths",),
    settings=settings,
)
def score_length(completion, ground_truth, *, most=10, bonus=0.0):
    right, short = float(len(completion) == int(ground_truth)) + bonus, float(len(completion) <= most)
    return {"score": right + short, "acc": min(right, 1.0), "short": short, "right": right}
"""


@pytest.fixture
def length(tmp_path, monkeypatch):
    """The task `length`, out of a user's file."""
    monkeypatch.setattr(registry.TASKS, "_entries", dict(registry.TASKS))
    (tmp_path / "length_reward.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    return import_place(str(tmp_path / "length_reward.py"))


def test_a_file_is_enough(length):
    assert rewards.score("length", "abc", "3") == {"score": 2.0, "acc": 1.0, "short": 1.0, "right": 1.0}
    assert rewards.score("length", "abc", "3", most=2, weights={"right": 2})["score"] == 2.0
    assert "length" in rewards.tasks() and registry.task_of("me/lengths") == "length"
    assert registry.task_of("nobody/knows") is None


def test_the_manager_takes_data_source_settings_and_weights(length):
    from test_scorers import CharacterTokenizer, run

    from maskgrpo_plugin.rewards.text.manager import TextRewardManager

    config = OmegaConf.create({"reward": {"length": {"most": 2}, "weights": {"length": {"right": 3.0}}}})
    manager = TextRewardManager(config, CharacterTokenizer())
    result = run(manager, [97, 98, 99], ground_truth="3", data_source="me/lengths", extra_info={"bonus": 1.0})
    info = result["reward_extra_info"]
    assert (result["reward_score"], info["short"], info["right"], info["acc"]) == (6.0, 0.0, 6.0, 1.0)


def test_extra_info_cannot_set_what_the_config_sets(length):
    from test_scorers import CharacterTokenizer, run

    from maskgrpo_plugin.rewards.text.manager import TextRewardManager

    manager = TextRewardManager(None, CharacterTokenizer())
    info = run(manager, [97] * 11, ground_truth="11", extra_info={"task": "length", "most": 99})["reward_extra_info"]
    assert info["short"] == 0.0


def test_settings_are_checked_with_the_run(length):
    config = {"reward_manager": {"name": "maskgrpo_text"}, "length": {"most": 0}}
    with pytest.raises(OptionError, match=r"^reward\.length\.most=0"):
        check_text_reward_config(OmegaConf.create({"reward": config}))
    config["reward_manager"]["name"] = "naive"
    check_text_reward_config(OmegaConf.create({"reward": config}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keys": ("acc",)}, "must give 'score'"),
        ({"keys": ("score",), "components": ("form",)}, "components"),
        ({"keys": ("score", "acc")}, "the task 'gsm8k' is already registered"),
    ],
)
def test_a_task_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        rewards.register_task("gsm8k", **fields)(lambda completion, ground_truth: {"score": 0.0})


def test_the_defaults():
    settings = TextRewardConfig.from_config(None)
    assert settings.timeout_s == 300 and settings.weights == {} and set(settings.settings) == {"code"}
