"""Rows of each task: what the scorer needs is there, the right answer scores best, splits never meet."""

import gzip
import itertools
import json
import os
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from maskgrpo_plugin import rewards
from maskgrpo_plugin.data import countdown, prepare, sudoku
from maskgrpo_plugin.data.prepare import main
from maskgrpo_plugin.data.records import HubSource

DATA = Path(os.environ.get("MASKGRPO_DATA", Path(__file__).parents[3] / "shared" / "data"))

MATH = {"problem": "What is $1/4+1/4$?", "solution": "It is $\\boxed{\\frac{1}{2}}$.", "level": "Level 1"}
MATH_500 = {"problem": "Find $x$.", "solution": "So \\boxed{4}.", "answer": "5", "unique_id": "a"}
COUNTDOWN = {"input": "30,100,93", "output": "23"}
SUDOKU = {"puzzle": "3102200002100320", "solution": "3142243142131324"}
ACECODE = {"question": "Write f that adds one.", "test_cases": ["assert f(1) == 2", "assert f(0) == 1"]}
MBPP = {"task_id": 11, "text": "Write f.", "code": "def f(x): ...", "test_list": ["assert f(1) == 2"]}
MBPP |= {"test_setup_code": "import math", "challenge_test_list": []}
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "import math\n\ndef helper(x):\n    return x\n\ndef f(x: int) -> int:\n    '''Add one.'''\n",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
    "entry_point": "f",
}


def lines(path, *records):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path


def prepared(task, folder, *arguments):
    assert main([task, "--output-dir", str(folder), *map(str, arguments)]) == 0
    return {path.stem: pq.read_table(path).to_pylist() for path in folder.glob("*.parquet")}


def few(task):
    return ["--train-rows", "1"] if task in ("countdown", "sudoku") else []


def one(task, folder, record):
    path = lines(folder / "a.jsonl.gz", record)
    rows = prepared(task, folder / "out", "--test", path, "--strict", *few(task))["validation"]
    assert len(rows) == 1
    row = rows[0]
    assert (row["extra_info"]["split"], row["extra_info"]["index"]) == ("validation", 0)
    content = row["prompt"][0]["content"]
    assert "<answer>" in content and "</answer>" in content
    return row, content


def score(row, completion, **extra):
    info = row["extra_info"]
    return rewards.score(info.pop("task"), completion, row["reward_model"]["ground_truth"], **{**info, **extra})


def test_math(tmp_path):
    row, content = one("math", tmp_path, MATH)
    assert content.startswith(MATH["problem"]) and "\\boxed" in content
    assert row["reward_model"]["ground_truth"] == "\\frac{1}{2}"
    assert score(row, "<answer>\\boxed{\\frac{1}{2}}</answer>")["score"] == 3.0
    row, _ = one("math", tmp_path, MATH_500)
    assert row["reward_model"]["ground_truth"] == "5"


def test_countdown(tmp_path):
    row, content = one("countdown", tmp_path, COUNTDOWN)
    assert "[30, 100, 93]" in content and "23" in content
    assert score(row, "<answer>\\boxed{30 - (100 - 93)}</answer>")["score"] == 1.0


def test_sudoku(tmp_path):
    row, content = one("sudoku", tmp_path, SUDOKU)
    assert SUDOKU["puzzle"] in content
    assert score(row, f"<answer>{SUDOKU['solution']}</answer>")["score"] == 1.0


def all_pass(program, tests):
    return {"pass_rate": 1.0, "acc": 1.0, "program": program}


@pytest.mark.parametrize(
    ("task", "record", "tests", "preamble"),
    [
        ("acecode", ACECODE, ACECODE["test_cases"], ""),
        ("mbpp", MBPP, MBPP["test_list"], "import math"),
        ("humaneval", HUMANEVAL, [HUMANEVAL["test"].strip() + "\n\ncheck(f)"], "import math\ndef helper(x):"),
    ],
)
def test_programs(tmp_path, task, record, tests, preamble):
    row, content = one(task, tmp_path, record)
    assert "```python" in content
    assert json.loads(row["reward_model"]["ground_truth"]) == tests
    assert row["ability"] == row["extra_info"]["task"] == "code"
    assert row["extra_info"]["preamble"].replace("\n\n", "\n").startswith(preamble)
    assert score(row, "<answer>\n```python\ndef f(x):\n    return x + 1\n```\n</answer>", run=all_pass)["score"] == 2.5


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        ("math", {**MATH, "problem": ""}, "problem"),
        ("math", {**MATH, "solution": "It is a half."}, "boxed"),
        ("countdown", {"input": "1,x", "output": "3"}, "whole numbers"),
        ("countdown", {"nums": [1, 2]}, "target"),
        ("countdown", {"nums": [0, 2], "target": 2}, "positive"),
        ("sudoku", {**SUDOKU, "puzzle": "310220000210032"}, "16 digits"),
        ("sudoku", {**SUDOKU, "puzzle": "4102200002100320"}, "no solution"),
        ("sudoku", {"puzzle": "0" * 16, "solution": "1" * 16}, "breaks the rules"),
        ("acecode", {**ACECODE, "test_cases": []}, "test_cases"),
        ("acecode", {**ACECODE, "test_cases": ["assert f("]}, "not Python"),
        ("mbpp", {**MBPP, "test_list": "assert f(1)"}, "test_list"),
        ("mbpp", {**MBPP, "task_id": None}, "task_id"),
        ("humaneval", {**HUMANEVAL, "entry_point": "g"}, "does not define g"),
        ("humaneval", {**HUMANEVAL, "entry_point": "f; g"}, "entry_point"),
        ("humaneval", {**HUMANEVAL, "prompt": "def f(:"}, "not Python"),
    ],
)
def test_malformed_records_are_refused_or_skipped(tmp_path, capsys, caplog, task, record, message):
    good = {"math": MATH, "countdown": COUNTDOWN, "sudoku": SUDOKU, "acecode": ACECODE}
    good |= {"mbpp": MBPP, "humaneval": HUMANEVAL}
    path = lines(tmp_path / "a.jsonl", good[task], record)
    arguments = [task, "--test", str(path), "--output-dir", str(tmp_path), *few(task)]
    assert main([*arguments, "--strict"]) == 1
    error = capsys.readouterr().err
    assert f"{path}:2" in error and message in error
    assert main(arguments) == 0
    assert len(pq.read_table(tmp_path / "validation.parquet")) == 1
    assert f"{path}:2" in caplog.text


def test_mbpp_tells_its_splits_apart_in_one_file(tmp_path):
    records = [{**MBPP, "task_id": number} for number in (1, 11, 510, 511, 600, 601, 974)]
    rows = prepared("mbpp", tmp_path / "out", "--train", lines(tmp_path / "a.jsonl", *records))
    assert {split: len(found) for split, found in rows.items()} == {"train": 2, "validation": 2}


def test_acecode_holds_out_a_part_of_one_file(tmp_path):
    records = [{**ACECODE, "question": f"Write function number {number}."} for number in range(400)]
    rows = prepared("acecode", tmp_path / "out", "--train", lines(tmp_path / "a.jsonl", *records))
    assert len(rows["train"]) + len(rows["validation"]) == 400
    assert 1 <= len(rows["validation"]) <= 20
    both = [{row["prompt"][0]["content"] for row in found} for found in rows.values()]
    assert not both[0] & both[1]


def reachable(numbers):
    """All values of expressions that use each number exactly once."""
    if len(numbers) == 1:
        return {Fraction(numbers[0])}
    values = set()
    for a, b in itertools.permutations(range(len(numbers)), 2):
        rest = [number for index, number in enumerate(numbers) if index not in (a, b)]
        x, y = Fraction(numbers[a]), Fraction(numbers[b])
        for value in [x + y, x - y, x * y, *([x / y] if y else [])]:
            values |= reachable([*rest, value])
    return values


def test_drawn_problems_are_solvable_different_and_seeded(tmp_path):
    size = ["--train-rows", 60, "--validation-rows", 20]
    rows = prepared("countdown", tmp_path / "a", *size)
    keys = {split: [countdown.problem_key(row) for row in found] for split, found in rows.items()}
    assert (len(set(keys["train"])), len(set(keys["validation"]))) == (60, 20)
    for numbers, target in keys["train"]:
        assert len(numbers) == 3 and 1 <= min(numbers) and max(numbers) <= 100 and 1 <= target <= 100
        assert target in reachable(numbers)
    assert prepared("countdown", tmp_path / "b", *size) == rows
    other = prepared("countdown", tmp_path / "c", *size, "--seed", 1)
    assert other["train"] != rows["train"]
    assert not {countdown.problem_key(row) for row in other["train"]} & set(keys["validation"])


def test_drawn_sudokus_have_one_solution(tmp_path):
    rows = prepared("sudoku", tmp_path, "--train-rows", 60, "--validation-rows", 20)
    puzzles = {split: {sudoku.problem_key(row) for row in found} for split, found in rows.items()}
    assert (len(puzzles["train"]), len(puzzles["validation"])) == (60, 20)
    assert not puzzles["train"] & puzzles["validation"]
    for row in rows["train"]:
        puzzle = row["extra_info"]["puzzle"]
        assert puzzle.count("0") == 8
        assert sudoku.solutions(puzzle) == [row["reward_model"]["ground_truth"]]
    assert len(sudoku.solved_grids()) == 288


def test_training_problems_of_the_validation_file_are_left_out(tmp_path, caplog):
    validation = lines(tmp_path / "v.jsonl", COUNTDOWN)
    train = lines(tmp_path / "t.jsonl", {"nums": [93, 30, 100], "target": 23}, {"nums": [1, 2, 3], "target": 6})
    rows = prepared("countdown", tmp_path / "out", "--train", train, "--test", validation)
    assert [countdown.problem_key(row) for row in rows["train"]] == [((1, 2, 3), 6)]
    assert "1 rows left out" in caplog.text


def test_the_hub_is_read_where_no_file_is_given(tmp_path, monkeypatch):
    asked = []

    def read_hub(source):
        asked.append(source)
        yield f"{source.name}[{source.split}]:1", MATH
        yield f"{source.name}[{source.split}]:2", {"nums": [1, 2, 3], "target": 6}
        yield f"{source.name}[{source.split}]:3", {"nums": [1, 2, 3, 4], "target": 6}

    monkeypatch.setattr(prepare, "read_hub", read_hub)
    assert set(prepared("math", tmp_path / "m")) == {"train", "validation"}
    assert asked == [
        HubSource("DigitalLearningGmbH/MATH-lighteval", "train"),
        HubSource("HuggingFaceH4/MATH-500", "test"),
    ]
    rows = prepared("countdown", tmp_path / "c", "--hub", "--validation-rows", 3)
    assert [countdown.problem_key(row) for row in rows["train"]] == [((1, 2, 3), 6)]


@pytest.mark.parametrize(
    ("task", "arguments", "counts"),
    [
        ("countdown", ["--test", "countdown_cd3_test.jsonl", "--train-rows", "5"], {"train": 5, "validation": 256}),
        ("sudoku", ["--test", "sudoku_4x4_test.csv", "--train-rows", "5"], {"train": 5, "validation": 500}),
        ("mbpp", ["--train", "mbpp.jsonl"], {"train": 374, "validation": 500}),
        ("humaneval", ["--test", "HumanEval.jsonl.gz"], {"validation": 164}),
    ],
)
def test_original_files_are_read_whole(tmp_path, task, arguments, counts):
    arguments = [str(DATA / word) if "." in word else word for word in arguments]
    if not Path(arguments[1]).exists():
        pytest.skip(f"no {arguments[1]}; set MASKGRPO_DATA to the folder that holds it")
    rows = prepared(task, tmp_path, *arguments, "--strict")
    assert {split: len(found) for split, found in rows.items()} == counts
