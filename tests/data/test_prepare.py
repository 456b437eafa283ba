"""Preparation of data sets: verl's columns, malformed rows, disjoint and seeded sums."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from maskgrpo_plugin import rewards
from maskgrpo_plugin.data.arithmetic import draw_sums, has_carry
from maskgrpo_plugin.data.prepare import main

DATA = Path(os.environ.get("MASKGRPO_DATA", Path(__file__).parents[3] / "shared" / "data"))
COLUMNS = {"data_source", "prompt", "ability", "reward_model", "extra_info"}
GOOD = {"question": "Two and two?", "answer": "2+2=<<2+2=4>>4\n#### 1,004"}


def write_lines(path, *lines):
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b"\n"
    )
    return path


def read(path):
    return pq.read_table(path).to_pylist()


def gsm8k(tmp_path, *more):
    return main(["gsm8k", "--output-dir", str(tmp_path / "out"), *map(str, more)])


def test_gsm8k_rows_have_verls_format(tmp_path, capsys):
    path = write_lines(tmp_path / "a.jsonl", GOOD, b"", GOOD)
    assert gsm8k(tmp_path, "--train", path, "--test", path) == 0
    rows = read(tmp_path / "out" / "train.parquet")
    assert set(rows[0]) == COLUMNS
    assert rows[0]["data_source"] == "openai/gsm8k"
    assert rows[0]["reward_model"] == {"style": "rule", "ground_truth": "1004"}
    assert rows[1]["extra_info"] == {"split": "train", "index": 1, "task": "gsm8k"}
    assert [message["role"] for message in rows[0]["prompt"]] == ["user"]
    content = rows[0]["prompt"][0]["content"]
    assert content.startswith("Two and two?") and "<answer>" in content
    assert read(tmp_path / "out" / "validation.parquet")[0]["extra_info"]["split"] == "validation"
    assert "2 rows" in capsys.readouterr().out


MALFORMED = [b"{broken", b"\xff\xfe", [1], {"question": "q"}, {"question": "q", "answer": "no hashes"}]
MALFORMED += [
    {"question": "q", "answer": "#### many"},
    {"question": "", "answer": "#### 1"},
    {"question": 3, "answer": "#### 1"},
]


@pytest.mark.parametrize("line", MALFORMED)
def test_malformed_rows_are_named_and_skipped_or_refused(tmp_path, caplog, capsys, line):
    path = write_lines(tmp_path / "a.jsonl", GOOD, line, GOOD)
    assert gsm8k(tmp_path, "--train", path) == 0
    assert len(read(tmp_path / "out" / "train.parquet")) == 2
    assert f"{path}:2" in caplog.text
    (tmp_path / "out" / "train.parquet").unlink()
    assert gsm8k(tmp_path, "--train", path, "--strict") == 1
    assert f"{path}:2" in capsys.readouterr().err
    assert not (tmp_path / "out" / "train.parquet").exists()


def test_missing_and_useless_files_are_errors(tmp_path, capsys):
    assert gsm8k(tmp_path, "--train", tmp_path / "none.jsonl") == 1
    assert "none.jsonl" in capsys.readouterr().err
    assert gsm8k(tmp_path, "--train", write_lines(tmp_path / "a.jsonl", [1])) == 1
    assert "no usable row" in capsys.readouterr().err


def test_max_rows(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", GOOD, GOOD, GOOD)
    assert gsm8k(tmp_path, "--train", path, "--max-rows", 2) == 0
    assert len(read(tmp_path / "out" / "train.parquet")) == 2
    with pytest.raises(SystemExit):
        gsm8k(tmp_path, "--train", path, "--max-rows", 0)


def test_original_gsm8k_files_are_read_whole(tmp_path):
    path = DATA / "gsm8k_test.jsonl"
    if not path.exists():
        pytest.skip(f"no {path}; set MASKGRPO_DATA to the folder that holds it")
    assert gsm8k(tmp_path, "--test", path, "--strict") == 0
    rows = read(tmp_path / "out" / "validation.parquet")
    assert len(rows) == 1319
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for row, record in zip(rows, records, strict=True):
        assert rewards.score("gsm8k", record["answer"], row["reward_model"]["ground_truth"])["acc"] == 1


@pytest.mark.parametrize(
    ("content", "place"),
    [(b"Puzzle,Solution\n3102200002100320,3142243142131324\nonly\n", ":3"), (b"Puzzle,Solution\n1,2\n", ":2")],
)
def test_malformed_csv_rows_are_named(tmp_path, capsys, content, place):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    assert main(["sudoku", "--test", str(path), "--strict", "--output-dir", str(tmp_path)]) == 1
    assert f"{path}{place}" in capsys.readouterr().err


def test_a_broken_gz_is_an_error(tmp_path, capsys):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b"no gzip")
    assert gsm8k(tmp_path, "--train", path) == 1
    assert f"cannot read {path}" in capsys.readouterr().err


def arithmetic(folder, seed=0, *more):
    arguments = ["arithmetic", "--train-rows", "300", "--validation-rows", "100", "--seed", str(seed)]
    assert main([*arguments, "--output-dir", str(folder), *more]) == 0
    return read(folder / "train.parquet"), read(folder / "validation.parquet")


def operands(rows):
    return [tuple(map(int, row["prompt"][0]["content"].rstrip("=").split("+"))) for row in rows]


def test_arithmetic_rows_are_right_disjoint_and_seeded(tmp_path):
    train, validation = arithmetic(tmp_path / "a")
    assert (len(train), len(validation)) == (300, 100)
    assert set(train[0]) == COLUMNS
    for (a, b), row in zip(operands(train), train, strict=True):
        assert 10 <= a <= 99 and 10 <= b <= 99
        assert row["reward_model"]["ground_truth"] == str(a + b)
        assert row["extra_info"]["task"] == row["data_source"] == "arithmetic"
    assert len(set(operands(train))) == 300
    assert arithmetic(tmp_path / "b") == (train, validation)
    other_train, other_validation = arithmetic(tmp_path / "c", 1)
    assert other_train != train

    def unordered(*parts):
        return {tuple(sorted(pair)) for part in parts for pair in operands(part)}

    assert not unordered(train, other_train) & unordered(validation, other_validation)


def test_too_many_rows_are_refused_with_the_number_there_is(tmp_path, capsys):
    out = ["--output-dir", str(tmp_path)]
    assert main(["arithmetic", "--train-rows", "9999", *out]) == 1
    assert "there are" in capsys.readouterr().err
    assert main(["arithmetic", "--digits", "99", *out]) == 1


@pytest.mark.parametrize("digits", [1, 2, 4, 9])
def test_draw_sums_gives_different_pairs(digits):
    for held_out in (False, True):
        pairs = draw_sums(digits, 10, held_out=held_out, seed=3)
        assert len(set(pairs)) == 10
        assert all(len(str(a)) == len(str(b)) == digits for a, b in pairs)


def test_draw_sums_with_a_share_of_carries():
    pairs = draw_sums(2, 500, held_out=True, seed=3, carry_share=0.6)
    assert sum(has_carry(a, b) for a, b in pairs) == 300
    assert len(set(pairs)) == 500
    assert not any(has_carry(a, b) for a, b in draw_sums(5, 20, held_out=False, seed=3, carry_share=0.0))
    with pytest.raises(ValueError, match="such sums"):
        draw_sums(2, 2000, held_out=True, seed=3, carry_share=1.0)
    with pytest.raises(ValueError, match="carry_share"):
        draw_sums(2, 20, held_out=True, seed=3, carry_share=1.5)
