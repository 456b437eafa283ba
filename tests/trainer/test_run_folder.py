"""The folder of a run's checkpoints: torn pointers, failed writes, references that nobody needs."""

import logging

import pytest

from maskgrpo_plugin.trainer.checkpoints import (
    POINTER,
    CheckpointError,
    explained,
    prune_references,
    readable,
    repair_pointer,
    whole_checkpoints,
)


@pytest.fixture
def root(tmp_path):
    """Checkpoints of the steps 2, 4 and 10, and a torn one of 12."""
    for step in (2, 4, 10, 12):
        (tmp_path / f"global_step_{step}" / "actor").mkdir(parents=True)
        if step != 12:
            (tmp_path / f"global_step_{step}" / "data.pt").touch()
    (tmp_path / POINTER).write_text("10")
    return tmp_path


def test_only_checkpoints_that_were_written_to_their_end_are_whole(root):
    assert whole_checkpoints(root) == [2, 4, 10]


def test_a_checkpoint_whose_actor_was_removed_is_not_whole(root):
    (root / "global_step_4" / "actor").rmdir()
    assert whole_checkpoints(root) == [2, 10]


def test_a_pointer_to_a_checkpoint_whose_actor_was_removed_is_mended(root):
    (root / "global_step_4" / "actor").rmdir()
    (root / POINTER).write_text("4")
    repair_pointer(root)
    assert (root / POINTER).read_text() == "10"


@pytest.mark.parametrize("said", ["", "1x", "14"])
def test_a_torn_pointer_comes_to_name_the_last_whole_checkpoint(root, said, caplog):
    (root / POINTER).write_text(said)
    with caplog.at_level(logging.WARNING):
        repair_pointer(root)
    assert (root / POINTER).read_text() == "10"
    assert repr(said) in caplog.text and "step 10" in caplog.text


def test_a_good_pointer_and_a_folder_without_one_stay_as_they_are(root):
    (root / POINTER).write_text("4\n")
    repair_pointer(root)
    assert (root / POINTER).read_text() == "4\n"
    (root / POINTER).unlink()
    repair_pointer(root)
    assert not (root / POINTER).exists()


def test_without_any_whole_checkpoint_training_starts_anew(tmp_path):
    (tmp_path / POINTER).write_text("")
    repair_pointer(tmp_path)
    assert not (tmp_path / POINTER).exists()


def test_a_failed_write_names_the_folder_the_space_and_the_cause(root):
    with (
        pytest.raises(CheckpointError) as raised,
        explained("could not be written", root / "global_step_14", "make room"),
    ):
        raise RuntimeError("stack of a worker\n[enforce fail] unexpected pos 770304 vs 770192")
    message = str(raised.value)
    assert message.startswith(f"the checkpoint {root}/global_step_14 could not be written (")
    assert "B free of " in message and "make room" in message
    assert message.endswith("RuntimeError: [enforce fail] unexpected pos 770304 vs 770192")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (312128, "312 kB"), (999_600, "1 MB"), (16.1e9, "16.1 GB")],
)
def test_sizes_are_said_in_the_unit_that_tells_them(count, text):
    assert readable(count) == text


def test_references_go_with_their_actors(root):
    for step in (2, 4):
        (root / f"global_step_{step}" / "reference").mkdir()
    (root / "global_step_2" / "actor").rmdir()
    prune_references(root)
    assert not (root / "global_step_2" / "reference").exists() and (root / "global_step_4" / "reference").exists()
