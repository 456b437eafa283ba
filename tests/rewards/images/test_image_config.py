"""Start-up checks of `reward.image`: a mistake is named by key, value and what is allowed, before anything starts."""

import importlib
import socket

import pytest
from image_helpers import FILE
from omegaconf import OmegaConf

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.rewards.images.config import ImageRewardConfig, check_image_reward_config, image_reward_cpus


def make(image, manager="maskgrpo_image", **trainer):
    return OmegaConf.create(
        {
            "reward": {
                "reward_manager": {"name": manager},
                "custom_reward_function": {"path": None},
                "image": image,
            },
            "trainer": {"nnodes": 1, "n_gpus_per_node": 1, **trainer},
            "ray_kwargs": {"ray_init": {"num_gpus": 1}},
        }
    )


GOOD = {"factory": f"{FILE}:BrightnessScorer", "weight": 2, "options": {"slow_s": 1}}


def test_a_good_config_passes_and_is_read():
    config = make({"on_failure": "mean_of_group", "scorers": {"brightness": GOOD, "off": None}})
    check_image_reward_config(config)
    settings = ImageRewardConfig.from_config(config.reward.image)
    assert [scorer.name for scorer in settings.scorers] == ["brightness"]
    assert settings.scorers[0].weight == 2 and settings.scorers[0].options == {"slow_s": 1}
    assert settings.on_failure == "mean_of_group"


def test_runs_with_another_reward_manager_are_left_alone():
    config = make({"scorers": {"nonsense": {"kind": "nonsense"}}}, manager="maskgrpo_text")
    check_image_reward_config(config)
    assert image_reward_cpus(config) == 0
    del config.reward["image"]
    check_image_reward_config(config)


def test_cpus_of_the_scorers_are_counted():
    scorers = {"a": {**GOOD, "num_cpus": 0.5, "replicas": 3}, "b": GOOD}
    assert image_reward_cpus(make({"scorers": scorers})) == pytest.approx(1.6)


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ({"kind": "sharpness"}, r"scorers\.x\.kind='sharpness'.*available: aesthetic, clip"),
        ({}, r"scorers\.x\.kind='x'.*available: aesthetic"),
        ({"factory": "no.module:f"}, r"scorers\.x\.factory='no\.module:f'.*no module"),
        ({"factory": "nowhere.py:f"}, r"scorers\.x\.factory=.*no file"),
        ({**GOOD, "options": {"speed": 3}}, r"scorers\.x\.options\.speed=3.*there are log, slow_s"),
        ({**GOOD, "kind": "clip"}, "either kind or factory"),
        ({**GOOD, "wieght": 1}, r"scorers\.x\.wieght=1.*no such key; there are kind, factory, weight"),
        ({**GOOD, "weight": "much"}, r"scorers\.x\.weight='much'"),
        ({**GOOD, "weight": float("nan")}, r"scorers\.x\.weight=nan"),
        ({**GOOD, "max_batch": 0}, r"scorers\.x\.max_batch=0.*from 1"),
        ({**GOOD, "num_gpus": -1}, r"scorers\.x\.num_gpus=-1"),
        ({**GOOD, "timeout_s": 0}, r"scorers\.x\.timeout_s=0"),
        ({**GOOD, "options": [1]}, r"scorers\.x\.options=\[1\]"),
        ("clip", r"scorers\.x='clip'"),
        (
            {"kind": "digits", "options": {"folder": "/no/such"}},
            r"^reward\.image\.scorers\.x\.options\.folder='/no/such'",
        ),
        ({"kind": "remote"}, r"scorers\.x\.options\.url=None.*must be given"),
        ({"kind": "remote", "options": {"url": "x", "protocol": "y"}}, r"options\.url='x'.*http://host:port"),
    ],
)
def test_mistakes_in_a_scorer(scorer, message):
    with pytest.raises(OptionError, match=message):
        check_image_reward_config(make({"scorers": {"x": scorer}}))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, r"reward\.image=None.*needs this section"),
        ({}, r"reward\.image\.scorers=.*name at least one; there are aesthetic, clip"),
        ({"scorers": {"x": None}}, "name at least one"),
        ({"scorers": {"x": GOOD}, "on_failure": "ignore"}, r"on_failure='ignore'.*raise, drop_sample, mean_of_group"),
        ({"scorers": {"x": GOOD}, "policy": 1}, r"reward\.image\.policy=1.*no such key"),
        ({"scorers": {"score": GOOD}}, "not score"),
        ({"scorers": {"a-b": GOOD}}, "letters, digits"),
    ],
)
def test_mistakes_in_the_section(image, message):
    with pytest.raises(OptionError, match=message):
        check_image_reward_config(make(image))


def test_a_custom_reward_function_is_not_silently_ignored():
    config = make({"scorers": {"x": GOOD}})
    config.reward.custom_reward_function.path = "mine.py"
    with pytest.raises(OptionError, match=r"custom_reward_function\.path='mine\.py'.*factory"):
        check_image_reward_config(config)


@pytest.mark.parametrize(
    ("kind", "module", "extra"),
    [("clip", "open_clip", "open_clip_torch"), ("hpsv2", "open_clip", "hpsv2"), ("ocr", "rapidocr_onnxruntime", "ocr")],
)
@pytest.mark.parametrize("how", ["missing", "broken"])
def test_a_missing_or_broken_library_names_the_extra(kind, module, extra, how, monkeypatch):
    real = importlib.import_module

    def fake(name, *args):
        if name != module:
            return real(name, *args)
        if how == "missing":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", fake)
    what = "not installed" if how == "missing" else "import fails: operator torchvision::nms"
    with pytest.raises(OptionError, match=rf"^reward\.image\.scorers\.x\.kind='{kind}'.*{module}.*{what}.*") as error:
        check_image_reward_config(make({"scorers": {"x": {"kind": kind}}}))
    if how == "missing":
        assert f"maskgrpo-plugin[{extra}]" in str(error.value)


def test_a_dead_server_is_named_by_its_key():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(OptionError, match=r"scorers\.x\.options\.url='http://127.*no reward server answers there"):
        check_image_reward_config(make({"scorers": {"x": {"kind": "remote", "options": {"url": url}}}}))


def test_gpus_that_training_takes_are_not_promised_to_scorers():
    with pytest.raises(OptionError, match=r"scorers\.x\.num_gpus=0\.5.*training takes 1 of 1 GPUs"):
        check_image_reward_config(make({"scorers": {"x": {**GOOD, "num_gpus": 0.5}}}))
    config = make({"scorers": {"x": {**GOOD, "num_gpus": 0.5}}})
    config.ray_kwargs.ray_init.num_gpus = 2
    check_image_reward_config(config)
