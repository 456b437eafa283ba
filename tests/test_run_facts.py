"""What a run tells the screen that watches it, and what it leaves alone where none does."""

import json
import logging
import os
import sys
import warnings
from pathlib import Path

import pytest
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parent / "workers"))
import ranks

from maskgrpo_cli.signals import FACTS_VARIABLE, WARNING_MARK
from maskgrpo_plugin import run_facts
from maskgrpo_plugin.workers import platform

VARIABLES = "ray_kwargs.ray_init.runtime_env.env_vars"


@pytest.fixture
def config(tiny_run, tmp_path):
    """The quickstart's config with a folder of its own, without the logger `file`."""
    return ranks.compose_config(tiny_run, f"trainer.default_local_dir={tmp_path}/run", "trainer.logger=[console]")


@pytest.fixture
def watched(monkeypatch, tmp_path):
    """A screen that watches; the path of the facts."""
    for name in (run_facts.METRICS_VARIABLE, run_facts.ROOT_VARIABLE):
        monkeypatch.setenv(name, "")  # put back after the test, which sets it
        monkeypatch.delenv(name)
    monkeypatch.setenv(FACTS_VARIABLE, str(tmp_path / "facts.json"))
    return tmp_path / "facts.json"


def test_a_watched_run_tells_what_it_is_and_writes_its_metrics(config, watched, tiny_run, tmp_path):
    callback = run_facts.TellFacts()
    callback.on_run_start(config)
    callback.on_job_start(config)
    facts = json.loads(watched.read_text())
    assert facts["name"] == "quickstart" and facts["model"] == f"{tiny_run}/model"
    assert (facts["train_rows"], facts["validation_rows"], facts["prompts"], facts["completions"]) == (64, 16, 16, 8)
    assert facts["steps"] == 16 and facts["folder"] == f"{tmp_path}/run"
    assert facts["metrics"] == f"{tmp_path}/run/metrics.jsonl" and facts["metrics_before"] is None
    assert facts["added"] == ["trainer.logger=[console,file]"] and list(config.trainer.logger) == ["console", "file"]
    handed_on = OmegaConf.select(config, VARIABLES)
    assert handed_on[run_facts.METRICS_VARIABLE] == os.environ[run_facts.METRICS_VARIABLE] == facts["metrics"]
    assert handed_on[FACTS_VARIABLE] == str(watched)


def test_a_run_that_nobody_watches_is_left_as_it_is(config, monkeypatch):
    monkeypatch.delenv(FACTS_VARIABLE, raising=False)
    before = OmegaConf.to_container(config, resolve=False)
    callback = run_facts.TellFacts()
    callback.on_run_start(config)
    callback.on_job_start(config)
    assert OmegaConf.to_container(config, resolve=False) == before


def test_what_cannot_be_read_is_left_to_the_checks(config, watched):
    config.trainer.default_local_dir = "${no.such.key}"
    run_facts.TellFacts().on_run_start(config)  # raises nothing


def test_the_metrics_are_where_the_environment_says(config, watched, monkeypatch, tmp_path):
    monkeypatch.setenv(run_facts.ROOT_VARIABLE, str(tmp_path))
    assert run_facts.metrics_path(config) == tmp_path / "maskgrpo" / "quickstart.jsonl"
    monkeypatch.setenv(run_facts.METRICS_VARIABLE, str(tmp_path / "x.jsonl"))
    assert run_facts.metrics_path(config) == tmp_path / "x.jsonl"


def test_the_steps_follow_from_rows_and_epochs_where_no_number_is_set(config, tmp_path):
    config.trainer.total_training_steps = None
    assert run_facts.run_facts(config)["steps"] == 64 // 16 * 100
    config.data.train_max_samples, config.data.val_max_samples = 32, 5
    facts = run_facts.run_facts(config)
    assert (facts["train_rows"], facts["validation_rows"], facts["steps"]) == (32, 5, 32 // 16 * 100)
    config.data.train_files = str(tmp_path / "hub_name")
    assert run_facts.run_facts(config)["steps"] is None


def test_only_the_plugins_warnings_become_lines_for_the_screen(watched, monkeypatch, capsys):
    plugin = logging.getLogger("maskgrpo_plugin")
    monkeypatch.setattr(plugin, "handlers", [])
    run_facts.show_warnings()
    run_facts.show_warnings()
    logging.getLogger("maskgrpo_plugin.trainer.stages").warning("%d rewards\nfailed", 3)
    logging.getLogger("maskgrpo_plugin.trainer.stages").info("nothing")
    logging.getLogger("transformers").warning("of others")
    marked = [line for line in capsys.readouterr().err.splitlines() if WARNING_MARK in line]
    assert marked == [f"{WARNING_MARK}3 rewards failed"]


@pytest.mark.parametrize(("cores", "expected"), [(2, {"TQ_NUM_THREADS": "2"}), (64, {}), (None, {})])
def test_the_queue_gets_no_more_threads_than_there_are_cores(monkeypatch, cores, expected):
    monkeypatch.delenv("TQ_NUM_THREADS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(platform.psutil, "cpu_count", lambda logical: cores)
    alone = OmegaConf.create({"ray_kwargs": {"ray_init": {"address": None}}})
    assert platform.transfer_threads(alone) == expected
    cluster = OmegaConf.create({"ray_kwargs": {"ray_init": {"address": "10.0.0.1:6379"}}})
    assert platform.transfer_threads(cluster) == {}
    monkeypatch.setenv("TQ_NUM_THREADS", "1")
    assert platform.transfer_threads(alone) == {}


def test_only_engines_whose_packages_are_missing_are_passed_over():
    import maskgrpo_plugin.registration

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        maskgrpo_plugin.registration.leave_out_missing_engines()
        for error in ("ModuleNotFoundError(\"No module named 'veomni'\")", "ImportError('cannot import name')"):
            text = f"veomni engine is not available: {error}"
            warnings.warn_explicit(text, UserWarning, "__init__.py", 1, "verl.workers.engine")
    assert [str(each.message).split(": ")[1] for each in caught] == ["ImportError('cannot import name')"]
