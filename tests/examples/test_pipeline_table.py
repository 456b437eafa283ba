"""The table of examples/pipeline, from what an evaluation writes."""

import json

from example_modules import load_example


def test_the_table_has_each_stage_with_its_interval(tmp_path, capsys):
    for name, accuracy in (("initial", 0.0), ("model", 0.4375), ("checkpoints", 0.75)):
        (tmp_path / name).mkdir()
        summary = {"accuracy": accuracy, "accuracy_low": accuracy - 0.02, "accuracy_high": accuracy + 0.02}
        (tmp_path / name / "summary.json").write_text(json.dumps([summary]))
    assert load_example("table", "pipeline").main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "| random weights | 0.000 | -0.020 to 0.020 |",
        "| after SFT | 0.438 | 0.417 to 0.458 |",
        "| after RL | 0.750 | 0.730 to 0.770 |",
    ]
