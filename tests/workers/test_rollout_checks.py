"""`rollout.sampler`: the sampler's own options in a run's config, and the old keys that keep working for a release."""

import logging
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parent))
import ranks
from verl.utils.config import omega_conf_to_dataclass

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.workers.rollout import checks
from maskgrpo_plugin.workers.rollout.checks import check_rollout, check_sampler

SAMPLER = "actor_rollout_ref.rollout.sampler"


def compose(*overrides, name="quickstart"):
    return ranks.compose_config("/nowhere", *overrides, name=name, folder_key=f"{name}_dir")


def built(config):
    """The sampler as a server builds it from the composed config."""
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    return rollout.sampler.build(response_length=rollout.response_length, temperature=0.0, stop_token_ids=(2,))


def test_any_option_of_the_sampler_is_set_on_the_command_line():
    options = ["steps=4", "cache=dual", "parallel=hierarchical", "low_threshold=0.4", "early_stop=false"]
    config = compose(*(f"{SAMPLER}.options.{option}" for option in options))
    check_rollout(config)
    sampler = built(config)
    assert (sampler.steps, sampler.block_length, sampler.cache, sampler.low_threshold) == (4, 4, "dual", 0.4)
    assert sampler.stops == () and built(compose()).stops == (2,)


def test_another_sampler_is_not_given_the_options_of_the_first():
    with pytest.raises(OptionError, match=r"sampler\.options\.block_length=4.*emerge has no such option; it has steps"):
        check_sampler(compose(f"{SAMPLER}.name=emerge"))
    config = compose(f"{SAMPLER}.name=emerge", f"{SAMPLER}.options.block_length=null")
    check_sampler(config)
    assert (type(built(config)).__name__, built(config).steps) == ("EmergeSampler", 8)
    base = compose(f"{SAMPLER}.name=maskgit", f"{SAMPLER}.options.steps=12", name="digits")
    assert built(base).steps == 12


def test_old_keys_win_over_the_configs_options_and_name_the_new_key(caplog):
    config = compose(f"{SAMPLER}.steps=4", f"{SAMPLER}.early_stop=false", f"{SAMPLER}.schedule=linear")
    with caplog.at_level(logging.WARNING):
        check_sampler(config)
    for key in ("steps", "early_stop", "schedule"):
        assert f"{SAMPLER}.options.{key}" in caplog.text
    sampler = built(config)
    assert (sampler.steps, sampler.block_length, sampler.early_stop) == (4, 4, False)
    caplog.clear()
    check_sampler(compose())
    assert not caplog.records


def test_both_keys_of_an_option_on_one_command_line_must_agree(monkeypatch):
    given = [f"{SAMPLER}.steps=4", f"++{SAMPLER}.options.steps=8"]
    overrides = OmegaConf.create({"overrides": {"task": given}})
    monkeypatch.setattr(checks.HydraConfig, "initialized", classmethod(lambda cls: True))
    monkeypatch.setattr(checks.HydraConfig, "get", classmethod(lambda cls: overrides))
    with pytest.raises(OptionError, match=rf"{SAMPLER}\.steps=4.*{SAMPLER}\.options\.steps=8"):
        check_sampler(compose(*given))
    overrides.overrides.task = [given[0], f"{SAMPLER}.options.steps=4"]
    check_sampler(compose(*overrides.overrides.task))
    overrides.overrides.task = given[:1]
    check_sampler(compose(given[0]))


def test_compiled_layers_need_a_sampler_without_a_block_cache():
    compiled = "actor_rollout_ref.rollout.compile=true"
    check_sampler(compose(compiled))
    with pytest.raises(OptionError, match=r"rollout\.compile"):
        check_sampler(compose(compiled, f"{SAMPLER}.options.cache=dual"))
