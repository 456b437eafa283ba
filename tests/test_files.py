"""Files that are there whole or not at all, and temporary folders that are the user's alone."""

import os
import stat
import subprocess

import forked_python
import pytest

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.files import private_temporary_folder, written_whole


def test_the_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with written_whole(path) as file:
        file.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), written_whole(path) as file:
        file.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_another(tmp_path):
    path = tmp_path / "a"
    path.mkdir()
    (path / "old").write_text("")
    with written_whole(path) as folder:
        folder.mkdir()
        (folder / "new").write_text("")
    assert [file.name for file in path.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"maskgrpo_{os.getuid()}"


def test_a_private_folder_is_closed_to_others_and_found_again(temporary):
    old = os.umask(0)
    try:
        assert private_temporary_folder() == temporary
    finally:
        os.umask(old)
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
    (temporary / "model").mkdir()
    assert (private_temporary_folder() / "model").is_dir()


def plant_open(path):
    path.mkdir()
    path.chmod(0o777)


def plant_link(path):
    path.with_name("elsewhere").mkdir(mode=0o700)
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("plant", [plant_open, plant_link, lambda path: path.write_text("")])
def test_what_others_can_write_to_is_no_private_folder(temporary, plant):
    plant(temporary)
    with pytest.raises(OptionError, match="TMPDIR"):
        private_temporary_folder()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's folder")
def test_another_users_folder_is_no_private_folder(temporary):
    temporary.mkdir(mode=0o700)
    os.chown(temporary, 12345, 12345)
    with pytest.raises(OptionError, match="alone"):
        private_temporary_folder()


STUBS = """
import sys, types
def stub(name, **parts):
    module = types.ModuleType(name)
    module.__dict__.update(parts)
    sys.modules[name] = module
class TemplateLM: pass
stub("lm_eval"); stub("lm_eval.api"); stub("lm_eval.models")
stub("lm_eval.api.model", TemplateLM=TemplateLM)
stub("lm_eval.api.registry", register_model=lambda name: lambda owner: owner)
stub("lm_eval.models.utils", normalize_gen_kwargs=None, postprocess_generated_text=None)
stub("lm_eval.utils", get_rolling_token_windows=None, make_disjoint_window=None)
import maskgrpo_plugin.lm_eval_model as model
def resolve(pretrained, target, base_model):
    raise SystemExit(f"target={target}")
model.resolve_checkpoint = resolve
model.MaskGRPOLM(sys.argv[1])
"""


def test_the_harness_merges_into_the_private_folder(tmp_path):
    checkpoint = tmp_path / "model"
    checkpoint.mkdir()
    command = [*forked_python.command(), "-c", STUBS, str(checkpoint)]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    private = tmp_path / f"maskgrpo_{os.getuid()}"
    assert f"target={private}/maskgrpo_merged_" in run.stderr and stat.S_IMODE(private.stat().st_mode) == 0o700
