"""Files that are there whole or not at all."""

import pytest

from maskgrpo_plugin.files import written_whole


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
