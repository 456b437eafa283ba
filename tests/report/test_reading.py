"""What the report reads of a run's files: metrics, samples, sheets, and what it does with files that are damaged."""

import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from example_run import GROUPS, SIZE, STEPS, write_run

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.run_report.find import find_runs
from maskgrpo_plugin.run_report.metrics import read_metrics
from maskgrpo_plugin.run_report.panels import arrange, stages
from maskgrpo_plugin.run_report.samples import evenly_chosen, read_samples
from maskgrpo_plugin.run_report.sheets import read_sheets


def lines(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def metric(step, **data):
    return {"step": step, "data": data}


# ---- metrics


def test_a_torn_last_line_is_left_out_and_said(tmp_path):
    path = lines(tmp_path / "log.jsonl", metric(1, a=1.0), metric(2, a=2.0))
    path.write_text(path.read_text() + '{"step": 3, "data": {"a"')
    metrics = read_metrics([path])
    assert metrics.columns() == {"steps": [1, 2], "values": {"a": [1.0, 2.0]}}
    assert metrics.notes == ["log.jsonl: the last line is torn; it was left out"]


@pytest.mark.parametrize("line", ["", "[]", '{"step": 1}', '{"step": "x", "data": {}}', '{"step": 1, "data": 3}'])
def test_a_damaged_line_is_named_by_its_number(tmp_path, line):
    metrics = read_metrics([lines(tmp_path / "log.jsonl", metric(1, a=1.0), line, metric(2, a=2.0))])
    assert list(metrics.rows) == [1, 2] and "line 2 is no line" in metrics.notes[0]


def test_what_is_no_finite_number_is_told_apart_from_what_was_not_logged(tmp_path):
    # verl writes NaN and infinity as null; json.dumps as NaN and Infinity
    path = lines(tmp_path / "log.jsonl", metric(1, a=1.0, b=None), metric(2, b=float("nan")), metric(3, a=float("inf")))
    assert read_metrics([path]).columns()["values"] == {"a": [1.0, None, "nan"], "b": ["nan", "nan", None]}


def test_texts_and_lists_among_the_metrics_are_passed_over(tmp_path):
    path = lines(tmp_path / "log.jsonl", metric(1, a="x", b=[1], c=True, d=2))
    assert read_metrics([path]).columns()["values"] == {"d": [2.0]}


def test_the_later_part_of_a_resumed_run_counts(tmp_path):
    first = lines(tmp_path / "a.jsonl", metric(1, a=1.0), metric(2, a=2.0), metric(3, a=3.0))
    second = lines(tmp_path / "b.jsonl", metric(3, a=30.0), metric(4, a=40.0))
    assert read_metrics([first, second]).columns() == {"steps": [1, 2, 3, 4], "values": {"a": [1.0, 2.0, 30.0, 40.0]}}


# ---- panels


def test_levels_share_a_panel_in_their_order():
    names = [f"actor/level_{n}/kl_loss" for n in (10, 2, 1)] + ["actor/kl_loss"]
    (panel,) = arrange(names)
    assert (panel["section"], panel["title"]) == ("KL divergence", "KL to the reference")
    assert [line["label"] for line in panel["series"]] == ["mean over the levels", "level 1", "level 2", "level 10"]


def test_every_metric_is_drawn_once_and_unknown_ones_alone():
    names = ["critic/score/mean", "critic/score/min", "mine/x", "mine/y", "reward/format", "reward/format_failed"]
    panels = arrange([*names, "timing_s/gen", "training/global_step"])
    assert sorted(line["metric"] for panel in panels for line in panel["series"]) == sorted(names)
    assert [panel["title"] for panel in panels if panel["section"] == "Other metrics"] == ["mine/x", "mine/y"]
    failures = next(panel for panel in panels if panel["title"] == "Failures")
    assert [line["label"] for line in failures["series"]] == ["format_failed"]


def test_the_whole_step_is_no_stage():
    assert stages(["timing_s/gen", "timing_s/step", "timing_s/a/b", "perf/x", "timing_s/adv"]) == [
        "timing_s/gen",
        "timing_s/adv",
    ]


# ---- samples


def test_the_plugins_dump_is_read_by_groups(tmp_path):
    found = read_samples(write_run(tmp_path / "run") / "rollouts", "training", most=1000)
    assert len(found.groups) == STEPS * GROUPS and found.notes == []
    assert [group["step"] for group in found.groups] == [step for step in range(1, STEPS + 1) for _ in range(GROUPS)]
    group = found.groups[0]
    assert (group["prompt"], group["truth"], group["source"]) == ("question 0: 5 + 0 =", "5", "arithmetic")
    assert len(group["samples"]) == SIZE
    for sample in group["samples"]:
        assert set(sample["rewards"]) == {"acc", "format", "reward_failed"}
        assert sample["rewards"]["acc"] == sample["score"] == sample["advantage"] + 0.5
        assert len(sample["pieces"]) == len(sample["reveal"]) == sample["length"] + 1
        assert "".join(sample["pieces"][:-1]) == sample["answer"]


def test_verls_own_dump_is_read_by_groups(tmp_path):
    row = {"input": "p", "output": "o", "gts": None, "score": 0.5, "step": 2, "reward": 0.5, "acc": True, "why": "x"}
    rows = [row | {"uid": f"{name}_{n}_0"} for name in ("u", "v") for n in range(2)]
    found = read_samples(lines(tmp_path / "2.jsonl", *rows).parent, "validation", most=10)
    assert [len(group["samples"]) for group in found.groups] == [2, 2]
    assert found.groups[0]["samples"][0]["rewards"] == {"reward": 0.5, "acc": 1.0, "why": "x"}
    assert "reveal" not in found.groups[0]["samples"][0]


def test_rewards_that_are_no_finite_numbers_are_told(tmp_path):
    lines(tmp_path / "1.jsonl", {"input": "p", "output": "o", "score": float("nan"), "acc": float("inf")})
    (group,) = read_samples(tmp_path, "training", most=10).groups
    assert group["samples"][0]["score"] is None and group["samples"][0]["rewards"] == {"acc": "not finite"}


def test_an_order_of_revealing_that_does_not_fit_its_tokens_is_not_shown(tmp_path):
    lines(tmp_path / "1.jsonl", {"input": "p", "output": "ab", "pieces": ["a", "b"], "reveal_step": [0]})
    (group,) = read_samples(tmp_path, "training", most=10).groups
    assert "reveal" not in group["samples"][0]


def test_damaged_rows_and_foreign_files_are_left_out(tmp_path):
    lines(tmp_path / "1.jsonl", {"input": "p", "output": "o"}, "[1]", '{"input"')
    lines(tmp_path / "notes.jsonl", {"input": "p"})
    found = read_samples(tmp_path, "training", most=10)
    assert len(found.groups) == 1 and [note.split(": ")[1][:6] for note in found.notes] == ["line 2", "line 3"]


def test_of_many_steps_evenly_chosen_ones_are_read(tmp_path):
    for step in range(1, 10):
        lines(tmp_path / f"{step}.jsonl", *[{"input": str(n), "output": "o"} for n in range(10)])
    found = read_samples(tmp_path, "training", most=30)
    assert sorted({group["step"] for group in found.groups}) == [1, 5, 9] and len(found.groups) == 30
    assert found.notes == ["training samples of 3 of 9 steps are shown"]


@pytest.mark.parametrize(("count", "most", "expected"), [(5, 30, [0, 2, 4]), (5, 50, [0, 1, 2, 3, 4]), (5, 9, [4])])
def test_evenly_chosen_ones_have_the_first_and_the_last(count, most, expected):
    assert evenly_chosen(list(range(count)), [10] * count, most) == expected


def test_samples_older_than_the_run_are_left_out(tmp_path):
    for step in (1, 2):
        lines(tmp_path / f"{step}.jsonl", {"input": "p", "output": "o"})
    os.utime(tmp_path / "2.jsonl", (1000, 1000))
    found = read_samples(tmp_path, "training", most=10, started=2000.0)
    assert [group["step"] for group in found.groups] == [1] and "older than the run" in found.notes[0]


# ---- sheets


def test_large_sheets_are_made_smaller_and_damaged_ones_left_out(tmp_path):
    Image.new("RGB", (3200, 100), "red").save(tmp_path / "step_2.png")
    Image.new("RGB", (40, 20), "red").save(tmp_path / "step_10.png")
    (tmp_path / "step_3.png").write_bytes(b"no image")
    found = read_sheets(tmp_path, most=10)
    assert [(sheet["step"], sheet["width"], sheet["height"]) for sheet in found.sheets] == [(2, 1600, 50), (10, 40, 20)]
    assert found.sheets[1]["uri"].startswith("data:image/png;base64,") and "step_3.png" in found.notes[0]
    assert [sheet["step"] for sheet in read_sheets(tmp_path, most=1).sheets] == [10]


# ---- runs


def test_a_run_is_found_by_its_folder_the_one_above_and_its_metrics(tmp_path):
    checkpoints = write_run(tmp_path / "run")
    for path in (checkpoints, tmp_path / "run", tmp_path / "run" / "example.jsonl"):
        (run,) = find_runs([path])
        assert run.name == "example" and run.metrics == (tmp_path / "run" / "example.jsonl",)
        assert run.samples == {"training": checkpoints / "rollouts"} and run.config["data"]["seed"] == 0
    assert len(find_runs([checkpoints, tmp_path / "run"])) == 1


def test_a_folder_of_an_older_run_is_read_by_what_lies_in_it(tmp_path):
    checkpoints = write_run(tmp_path / "run", images=True)
    (checkpoints / "run.json").unlink()
    (run,) = find_runs([tmp_path / "run"])
    assert (run.name, run.images, run.config) == ("example", checkpoints / "images", {})
    assert run.samples == {"training": checkpoints / "rollouts"}


def test_a_folder_with_several_runs_gives_each(tmp_path):
    write_run(tmp_path / "both", "rl")
    write_run(tmp_path / "both" / "sft", "sft")
    assert [run.name for run in find_runs([tmp_path / "both"])] == ["rl", "sft"]


def test_runs_of_one_name_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        write_run(tmp_path / folder)
    names = [run.name for run in find_runs([tmp_path / "a", tmp_path / "b"])]
    assert names[0].endswith("/a)") and names[1].endswith("/b)")


def test_a_run_that_was_moved_is_read(tmp_path):
    write_run(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    (run,) = find_runs([tmp_path / "new"])
    assert run.metrics == (tmp_path / "new" / "example.jsonl",)
    assert run.samples == {"training": tmp_path / "new" / "checkpoints" / "rollouts"}


def test_metrics_that_are_gone_are_said(tmp_path):
    checkpoints = write_run(tmp_path / "run")
    (tmp_path / "run" / "example.jsonl").unlink()
    (run,) = find_runs([checkpoints])
    assert run.metrics == () and "example.jsonl are missing" in run.notes[0]


def test_a_damaged_record_leaves_what_lies_beside_it(tmp_path):
    checkpoints = write_run(tmp_path / "run")
    (checkpoints / "run.json").write_text('{"name": "x"')
    (run,) = find_runs([checkpoints])
    assert run.samples == {"training": checkpoints / "rollouts"} and "run.json cannot be read" in run.notes[0]


@pytest.mark.parametrize("name", ["empty", "nothing", "text.jsonl"])
def test_a_path_without_a_run_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jsonl").write_text("hello\n")
    with pytest.raises(OptionError, match=rf"RUN='.*{name}'"):
        find_runs([tmp_path / name])
