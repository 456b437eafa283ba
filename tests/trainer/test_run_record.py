"""The record of a run: config, versions, where the metrics are; what a resume keeps, and what is never written."""

import json
import sys

import pytest
from omegaconf import OmegaConf

from maskgrpo_plugin.run_files import file_logger_path
from maskgrpo_plugin.trainer.run_record import record_run, without_secrets


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "log.jsonl"))
    trainer = {"default_local_dir": str(tmp_path / "run"), "logger": ["console", "file"]}
    trainer |= {"project_name": "project", "experiment_name": "experiment"}
    return OmegaConf.create({"trainer": trainer, "length": 8, "twice": "${length}"})


def test_a_record_has_the_resolved_config_the_versions_and_the_place_of_the_metrics(config, tmp_path):
    import torch

    path = record_run(config, 0)
    record = json.loads(path.read_text())
    assert path == tmp_path / "run" / "run.json" and [file.name for file in path.parent.iterdir()] == ["run.json"]
    assert record["name"] == "experiment" and record["config"]["twice"] == 8
    assert record["versions"]["python"] == sys.version.split()[0]
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"verl", "maskgrpo_plugin"} <= set(record["versions"])
    (start,) = record["starts"]
    assert start["step"] == 0 and start["metrics"] == str(tmp_path / "log.jsonl")


@pytest.mark.parametrize("variables", [{}, {"VERL_FILE_LOGGER_ROOT": "root"}, {"VERL_FILE_LOGGER_PATH": "one.jsonl"}])
def test_the_place_of_the_metrics_is_verls(variables, tmp_path, monkeypatch):
    from verl.utils.tracking import FileLogger

    monkeypatch.chdir(tmp_path)
    for name in ("VERL_FILE_LOGGER_ROOT", "VERL_FILE_LOGGER_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    logger = FileLogger("project", "experiment")
    logger.finish()
    assert str(file_logger_path("project", "experiment")) == str((tmp_path / logger.filepath).resolve())


def test_a_resumed_run_keeps_the_metrics_before_it(config, tmp_path):
    log = tmp_path / "log.jsonl"
    record_run(config, 0)
    log.write_text("first\n")
    record_run(config, 4)
    assert not log.exists() and (tmp_path / "log.part1.jsonl").read_text() == "first\n"
    log.write_text("second\n")
    starts = json.loads(record_run(config, 9).read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 4, 9]
    names = ["log.part1.jsonl", "log.part2.jsonl", "log.jsonl"]
    assert [start["metrics"] for start in starts] == [str(tmp_path / name) for name in names]
    assert (tmp_path / "log.part2.jsonl").read_text() == "second\n"


def test_a_new_run_in_the_folder_of_an_old_one_has_a_record_of_its_own(config, tmp_path):
    record_run(config, 0)
    (tmp_path / "log.jsonl").write_text("first\n")
    record_run(config, 4)
    assert len(json.loads(record_run(config, 0).read_text())["starts"]) == 1


def test_a_torn_record_is_said_and_written_anew(config, tmp_path, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"starts": [')
    assert len(json.loads(record_run(config, 4).read_text())["starts"]) == 1
    assert "cannot be read" in caplog.text


def test_a_run_without_the_file_logger_says_so(config):
    config.trainer.logger = ["console"]
    assert json.loads(record_run(config, 0).read_text())["starts"][0]["metrics"] is None


def test_secrets_are_not_written():
    values = {
        "api_key": "k1",
        "options": [{"HF_TOKEN": "k2", "url": "https://me:k3@host/path"}],
        "runtime_env": {"env_vars": {"ANYTHING": "k4"}},
        "max_tokens": 5,
        "pad_token": "<pad>",
        "secret": None,
    }
    told = without_secrets(values)
    assert not any(f"k{n}" in json.dumps(told) for n in range(1, 5))
    assert told["options"][0]["url"] == "https://***@host/path"
    assert told["max_tokens"] == 5 and told["pad_token"] == "<pad>" and told["secret"] is None
