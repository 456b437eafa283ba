"""The export command: what it refuses. What it writes is tested where checkpoints are made, in tests/trainer."""

from maskgrpo_plugin.export import main


def test_what_is_no_checkpoint_or_already_published_is_refused(tiny_run, tmp_path, capsys):
    target = ["--output-dir", str(tmp_path / "out")]
    for model, said in (("/nowhere", "does not exist"), (str(tiny_run / "model"), "published form already")):
        assert main(["--model", model, *target]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_not_written_over(tiny_run, tmp_path, capsys):
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    assert main(["--model", str(tiny_run / "model"), "--output-dir", str(tmp_path)]) == 2
    assert "no earlier export wrote" in capsys.readouterr().err and kept.read_text() == "mine"
