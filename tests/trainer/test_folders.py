"""Folders that a run writes to: what cannot be written, read or filled is said before the run starts."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "workers"))
import ranks

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.trainer import folders
from maskgrpo_plugin.trainer.folders import check_folders, checkpoint_bytes


@pytest.fixture(scope="module")
def config(tiny_run):
    """A function from overrides to the quickstart's config."""
    return lambda *overrides: ranks.compose_config(tiny_run, *overrides)


def test_a_folder_that_is_not_there_yet_is_not_made(config, tmp_path):
    check_folders(config(f"trainer.default_local_dir={tmp_path}/a/b/c"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["default_local_dir", "rollout_data_dir", "validation_data_dir"])
def test_a_file_in_the_way_is_named(config, tmp_path, key):
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=rf"trainer\.{key}=.*{tmp_path}/file is no folder"):
        check_folders(config(f"trainer.{key}={tmp_path}/file/checkpoints"))


def test_a_file_system_that_refuses_is_named(config):
    with pytest.raises(OptionError, match=r"trainer\.default_local_dir=.*/proc cannot be written: "):
        check_folders(config("trainer.default_local_dir=/proc/checkpoints"))


def test_a_disk_without_room_for_a_checkpoint_is_refused_and_a_tight_one_named(config, tmp_path, monkeypatch, caplog):
    run = config(f"trainer.default_local_dir={tmp_path}")
    size = checkpoint_bytes(run)
    assert size == pytest.approx(12 * 26_000, rel=0.5)  # float32 weights and two moments
    lora = config(f"trainer.default_local_dir={tmp_path}", "actor_rollout_ref.model.lora_rank=4")
    assert checkpoint_bytes(lora) == size // 3

    def free(amount):
        monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: SimpleNamespace(free=amount))

    free(size - 1)
    with pytest.raises(OptionError, match=rf"a checkpoint takes about .*B, {tmp_path} has .*B free"):
        check_folders(run)
    check_folders(config(f"trainer.default_local_dir={tmp_path}", "trainer.save_freq=-1"))
    free(size + 1)
    with caplog.at_level(logging.WARNING):
        check_folders(run)
    assert "one more is written before the oldest goes" in caplog.text
    caplog.clear()
    free(size * 100)
    check_folders(run)
    assert not caplog.records


@pytest.mark.parametrize(
    ("content", "steps", "message"),
    [
        ("", (), "holds '', and there is no whole checkpoint"),
        ("ten", (), "holds 'ten', and there is no whole checkpoint"),
        ("ten", (2,), None),  # the trainer mends it
        ("2", (2,), None),
    ],
)
def test_a_pointer_to_no_checkpoint_is_named(config, tmp_path, content, steps, message):
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(content)
    for step in steps:
        (tmp_path / f"global_step_{step}" / "actor").mkdir(parents=True)
        (tmp_path / f"global_step_{step}" / "data.pt").touch()
    run = config(f"trainer.default_local_dir={tmp_path}", "trainer.resume_mode=auto")
    if message is None:
        check_folders(run)
    else:
        with pytest.raises(OptionError, match=message):
            check_folders(run)


def test_a_checkpoint_to_resume_from_must_be_there(config, tmp_path):
    options = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}/global_step_7"]
    with pytest.raises(OptionError, match=r"trainer\.resume_from_path.*there is no checkpoint"):
        check_folders(config(*options))
    (tmp_path / "global_step_7" / "actor").mkdir(parents=True)
    check_folders(config(*options))
