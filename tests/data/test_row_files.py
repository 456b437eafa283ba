"""Data files as the checks read them: all rows, or an even sample of a large file, without reading the rest."""

import json
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from maskgrpo_plugin.data import row_files
from maskgrpo_plugin.data.checks import check_python_object, check_rows
from maskgrpo_plugin.data.reward_checks import check_text_rows
from maskgrpo_plugin.data.row_files import data_files
from maskgrpo_plugin.errors import OptionError


def run(train, validation=None, **data):
    values = {
        "train_files": str(train),
        "val_files": str(validation or train),
        "prompt_key": "prompt",
        "train_batch_size": 1,
    }
    return OmegaConf.create({"data": values | data})


def write(path, count, group=None, broken=()):
    rows = [
        {"prompt": None if n in broken else [{"role": "user", "content": str(n)}], "extra_info": {"index": n}}
        for n in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


@pytest.mark.parametrize("group", [None, 70, 3])
def test_a_large_file_is_sampled_evenly_to_its_ends(tmp_path, monkeypatch, group):
    monkeypatch.setattr(row_files, "MOST_ROWS", 50)
    content = data_files(run(write(tmp_path / "rows.parquet", 1000, group)))[0].content
    numbers = list(content.numbers)
    assert content.total == 1000 and 25 <= len(numbers) <= 75 and numbers == sorted(set(numbers))
    assert [row["extra_info"]["index"] for row in content.rows] == numbers
    assert numbers[0] == 0 and numbers[-1] >= 900 and max(b - a for a, b in pairwise(numbers)) <= 100


def test_a_small_file_is_read_whole_and_again_once_it_changes(tmp_path):
    file = write(tmp_path / "rows.parquet", 40)
    assert len(data_files(run(file))[0].content.rows) == 40
    write(file, 41, broken=[17])
    with pytest.raises(OptionError, match=r"data\.train_files='.*rows\.parquet, row 17' .* its prompt is null"):
        check_rows(run(file))


def test_lines_and_lists_of_json_are_read_alike(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": str(n)}]} for n in range(5)]
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    (tmp_path / "list.json").write_text(json.dumps(rows))
    lines, listed = (data_files(run(tmp_path / name))[0].content for name in ("lines.jsonl", "list.json"))
    assert lines.rows == listed.rows == rows and lines.total == listed.total == 5
    (tmp_path / "torn.jsonl").write_text(json.dumps(rows[0]) + '\n{"prompt": ')
    with pytest.raises(OptionError, match=r"torn\.jsonl.*line 2 is no JSON"):
        check_rows(run(tmp_path / "torn.jsonl"))


def test_validation_files_are_checked_like_training_files(tmp_path):
    good, bad = write(tmp_path / "good.parquet", 4), write(tmp_path / "bad.parquet", 4, broken=[2])
    check_rows(run(good))
    with pytest.raises(OptionError) as error:
        check_rows(run(good, bad))
    assert error.value.key == "data.val_files" and "bad.parquet, row 2" in str(error.value)


def test_rows_without_any_index_are_warned_of(tmp_path, caplog):
    pq.write_table(pa.Table.from_pylist([{"prompt": [{"role": "user", "content": "1"}]}]), tmp_path / "rows.parquet")
    check_rows(run(tmp_path / "rows.parquet"))
    assert "no row has an extra_info.index" in caplog.text


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("def score(): ...", "score", None),
        ("async def score(): ...", "score", None),
        ("from math import sqrt as score", "score", None),
        ("score = lambda *_: 0", "score", None),
        ("if True:\n    def score(): ...", "score", None),
        ("from math import *", "score", None),
        ("def scores(): ...", "score", "no such name; it defines scores"),
        ("def score(:", "score", "it is no Python"),
        ("raise SystemExit('must not run')\ndef score(): ...", "score", None),
        ("def score(): ...", None, "a name that"),
    ],
)
def test_a_python_file_is_looked_into_without_running_it(tmp_path, source, name, message):
    (tmp_path / "own.py").write_text(source)
    config = OmegaConf.create({"reward": {"function": {"path": str(tmp_path / "own.py"), "name": name}}})
    if message is None:
        check_python_object(config, "reward.function")
    else:
        with pytest.raises(OptionError, match=message):
            check_python_object(config, "reward.function")


def test_texts_among_images_need_a_task_and_a_ground_truth(tmp_path):
    image = {
        "data_source": "p",
        "reward_model": {"ground_truth": None},
        "extra_info": {"modality": "t2i", "task": None},
    }
    text = {
        "data_source": "p",
        "reward_model": {"ground_truth": "5"},
        "extra_info": {"modality": None, "task": "gsm8k"},
    }
    unscorable = text | {"reward_model": {"ground_truth": None}}

    def check(*rows):
        pq.write_table(pa.Table.from_pylist(list(rows)), tmp_path / "mixed.parquet")
        reward = {"reward_manager": {"name": "maskgrpo_image"}, "custom_reward_function": {"path": None}}
        check_text_rows(OmegaConf.merge(run(tmp_path / "mixed.parquet"), {"reward": reward}))

    check(image, text)
    with pytest.raises(OptionError, match=r"row 2\b.*ground_truth"):
        check(image, text, unscorable)
