"""The doctor: what it reports, and that its exit status follows from it."""

import re
from pathlib import Path

from maskgrpo_plugin import doctor


def test_an_installation_that_works_is_usable(capsys):
    assert doctor.main([]) == 0
    report = capsys.readouterr().out
    assert "FAIL" not in report and "the plugin is usable" in report
    for name in ("trainer maskgrpo_sync", "reward manager maskgrpo_text", "rollout masked_diffusion", "model llada"):
        assert name in report
    for name in ("advantage maskgrpo", "loss maskgrpo_gmpo", "engine masked_diffusion", "platform cpu", "extra dimoo"):
        assert name in report


def test_a_wrong_verl_is_reported_and_fails(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "VERL_VERSION", "0.0.1")
    assert doctor.main([]) == 1
    assert "the plugin is for 0.0.1" in capsys.readouterr().out


def test_extras_are_those_of_the_package():
    root = Path(doctor.__file__).parents[1]
    text = (root / "pyproject.toml").read_text()
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    assert {*doctor.EXTRAS, "test"} == set(re.findall(r"^(\w+) = ", section, re.MULTILINE))


def test_a_registration_that_is_missing_is_reported_and_fails(capsys, monkeypatch):
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    monkeypatch.delitem(POLICY_LOSS_REGISTRY, "maskgrpo")
    assert doctor.main([]) == 1
    assert "FAIL loss maskgrpo " in capsys.readouterr().out


def test_a_broken_extension_is_reported_and_fails(capsys, monkeypatch):
    monkeypatch.setenv("MASKGRPO_EXTENSIONS", "no_such_extension")
    assert doctor.main([]) == 1
    assert "'no_such_extension' cannot be imported" in capsys.readouterr().out
