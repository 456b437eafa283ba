"""Keys do not get into the log with the config."""

import pytest
from omegaconf import OmegaConf

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.rewards.text.config import check_text_reward_config
from maskgrpo_plugin.sandbox import SandboxConfig


@pytest.mark.parametrize("manager", ["maskgrpo_text", "maskgrpo_image", "naive"])
@pytest.mark.parametrize("key", ["sk-hunter2", "${oc.env:SOME_KEY}"])
def test_a_key_in_the_config_is_refused_before_verl_prints_it(manager, key, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-hunter2")
    section = {"reward_manager": {"name": manager}, "sandbox": {"provider": "e2b", "api_key": key}}
    with pytest.raises(OptionError, match=r"^reward\.sandbox\.api_key=.*E2B_API_KEY") as caught:
        check_text_reward_config(OmegaConf.create({"reward": section}))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("sandbox", [None, {}, {"api_key": ""}, {"api_key": None}])
def test_a_config_without_a_key_passes(sandbox):
    check_text_reward_config(OmegaConf.create({"reward": {"reward_manager": {"name": "naive"}, "sandbox": sandbox}}))


def test_the_settings_do_not_print_their_key():
    assert "hunter2" not in repr(SandboxConfig(provider="e2b", api_key="sk-hunter2"))
