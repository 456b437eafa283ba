"""Images by the evaluation command: the folders that GenEval and DPG-Bench read, and scores by the image scorers."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgrpo_plugin.evaluate import main

ROOT = Path(__file__).parents[2]
BRIGHTNESS = f"{ROOT}/tests/e2e/brightness.py:Brightness"


def write_prompts(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def draw(folder, out, prompts, *options):
    """Run the command; returns the generations."""
    model = ["--model", str(folder / "model"), "--image-tokenizer", str(folder / "vq")]
    sizes = ["--steps", "4", "--temperature", "1", "--batch-size", "8"]
    assert main([*model, *prompts, "--output-dir", str(out), *sizes, *options]) == 0
    return [json.loads(line) for line in (out / "generations.jsonl").read_text().splitlines()]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_genevals_scorer_finds_its_folders(tiny_digits, tmp_path):
    records = [
        {"tag": "single_object", "include": [{"class": digit, "count": 1}], "prompt": f"a handwritten {digit}"}
        for digit in ("seven", "two", "nine")
    ]
    prompts = ["--prompts", str(write_prompts(tmp_path / "geneval.jsonl", records))]
    out = tmp_path / "out"
    rows = draw(tiny_digits, out, prompts, "--layout", "geneval", "--samples", "2")
    folder = out / "images" / "geneval"
    assert sorted(place.name for place in folder.iterdir()) == ["00000", "00001", "00002"]
    for place, record in zip(sorted(folder.iterdir()), records, strict=True):
        with (place / "metadata.jsonl").open() as file:
            assert json.load(file) == record
        assert sorted(file.name for file in (place / "samples").iterdir()) == ["00000.png", "00001.png"]
        assert pixels(place / "samples" / "00000.png").shape == (8, 8, 3)
    assert {row["image"] for row in rows} == {str(file.relative_to(out)) for file in folder.rglob("*.png")}
    assert {(row["effective_tokens"], row["model_calls"], row["score"]) for row in rows} == {(16, 4, None)}


def test_dpg_benchs_scorer_finds_four_images_in_a_square(tiny_digits, tmp_path):
    records = [{"item_id": f"part{n}", "prompt": f"a handwritten {digit}"} for n, digit in enumerate(("one", "six"))]
    prompts = ["--prompts", str(write_prompts(tmp_path / "dpg.jsonl", records))]
    out = tmp_path / "out"
    draw(tiny_digits, out, prompts, "--layout", "dpg_bench", "--samples", "4", "--sampler", "maskgit")
    assert sorted(file.name for file in (out / "dpg_bench").iterdir()) == ["part0.png", "part1.png"]
    square = pixels(out / "dpg_bench" / "part1.png")
    resolution = 8
    boxes = [(0, 0), (resolution, 0), (0, resolution), (resolution, resolution)]  # left, top as DPG-Bench crops
    for sample, (left, top) in enumerate(boxes):
        single = pixels(out / "images" / "dpg" / "00001" / "samples" / f"{sample:05d}.png")
        assert np.array_equal(square[top : top + resolution, left : left + resolution], single)


def test_images_are_the_same_after_a_stop(tiny_digits, tmp_path):
    data = ["--data", str(tiny_digits / "data" / "validation.parquet")]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    draw(tiny_digits, whole, data, "--cfg-scale", "1.5")
    draw(tiny_digits, stopped, data, "--cfg-scale", "1.5", "--limit", "3")
    draw(tiny_digits, stopped, data, "--cfg-scale", "1.5")
    files = sorted(file.relative_to(whole) for file in whole.rglob("*.png"))
    assert len(files) == 10
    assert all(np.array_equal(pixels(whole / file), pixels(stopped / file)) for file in files)
    assert len({pixels(whole / file).tobytes() for file in files}) == 10


def test_images_are_scored_by_the_rewards_scorers(tiny_digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    data = ["--data", str(tiny_digits / "data" / "validation.parquet")]
    out = tmp_path / "out"
    shown = sorted(pixels(tmp_path / row["image"]).mean() / 255 for row in draw(tiny_digits, tmp_path, data))
    limit = (shown[4] + shown[5]) / 2
    scorers = [
        f"reward.image.scorers.bright={{factory: '{BRIGHTNESS}'}}",
        f"reward.image.scorers.fragile={{factory: '{BRIGHTNESS}', max_batch: 1, options: {{fail_below: {limit}}}}}",
    ]
    rows = draw(tiny_digits, out, data, "--set", *scorers)
    assert len(rows) == 10
    for row in rows:
        brightness = pixels(out / row["image"]).mean() / 255
        assert row["reward"]["bright"] == pytest.approx(brightness)
        assert row["failure"] == ("error" if brightness < limit else None)
        assert ("fragile" in row["reward"]) == (row["failure"] is None)
    (summary,) = json.loads((out / "summary.json").read_text())
    assert summary["failures"] == 5 and "accuracy" not in summary
    assert summary["reward"]["bright"] == pytest.approx(sum(shown) / 10)
    assert summary["reward"]["fragile"] == pytest.approx(sum(shown[5:]) / 5)
    header, line = capsys.readouterr().out.splitlines()[-2:]
    assert "bright" in header.split() and "accuracy" not in header
    assert line.split()[0] == "digits"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layout", "geneval"], "--layout='geneval'"),
        (["--layout", "dpg_bench"], "--layout='dpg_bench'"),
        (["--scorers", "sharpness"], "sharpness"),
        (["--image-tokenizer", "/nowhere"], "--image-tokenizer='/nowhere'"),
        (["--image-size", "9", "8"], "--image-size"),
        (["--sampler", "semi_autoregressive"], "--sampler='semi_autoregressive'.*emerge, maskgit"),
    ],
)
def test_image_options_that_cannot_work_are_named(tiny_digits, tmp_path, capsys, options, message):
    model = ["--model", str(tiny_digits / "model"), "--image-tokenizer", str(tiny_digits / "vq")]
    data = ["--data", str(tiny_digits / "data" / "validation.parquet"), "--output-dir", str(tmp_path / "out")]
    assert main([*model, *data, *options]) == 1
    assert re.search(message, capsys.readouterr().err)
