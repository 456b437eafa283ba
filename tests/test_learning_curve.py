"""The learning curve reads verl's log as it is written."""

import csv
import json

import pytest

from maskgrpo_plugin.learning_curve import choose_metrics, main, read_metrics


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "run.jsonl"
    rows = [
        {"step": 0, "data": {"val-core/arithmetic/acc/mean@1": 0.4}},
        {"step": 1, "data": {"critic/score/mean": 0.5, "note": "text"}},
        {"step": 2, "data": {"critic/score/mean": 0.6, "val-core/arithmetic/acc/mean@1": 0.55}},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_csv_and_png_hold_the_logged_values(log, tmp_path, capsys):
    assert main([str(log), "--output", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "learning_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["val-core/arithmetic/acc/mean@1"] for row in rows] == ["0.4", "", "0.55"]
    assert (tmp_path / "out" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert "0.400 at step 0, 0.550 at step 2" in capsys.readouterr().out


def test_text_is_not_a_metric(log):
    assert choose_metrics(read_metrics(log), ("note", "critic/")) == ["critic/score/mean"]


def test_a_broken_line_is_named(log):
    log.write_text(log.read_text() + "oops\n")
    with pytest.raises(ValueError, match="line 4"):
        read_metrics(log)
