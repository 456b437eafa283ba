"""Prompts by style and by the user's own text: their form, what rows say of them, and what is refused."""

import json

import pyarrow.parquet as pq
import pytest

from maskgrpo_plugin import rewards
from maskgrpo_plugin.data.prepare import DATA_SETS, main
from maskgrpo_plugin.data.templates import Template

RECORDS = {
    "gsm8k": {"question": "Two and {target} make?", "answer": "#### 4"},
    "math": {"problem": "What is $\\frac{1}{4}+\\frac{1}{4}$?", "answer": "\\frac{1}{2}"},
    "countdown": {"nums": [30, 100, 93], "target": 23},
    "sudoku": {"puzzle": "3102200002100320", "solution": "3142243142131324"},
}
PARTS = {
    "gsm8k": ["Two and {target} make?"],
    "math": ["What is $\\frac{1}{4}+\\frac{1}{4}$?"],
    "countdown": ["[30, 100, 93]", "23"],
    "sudoku": ["3102200002100320"],
}
ANSWERS = {"gsm8k": "4", "math": "\\frac{1}{2}", "countdown": "30-(100-93)", "sudoku": "3142243142131324"}
WRONG = {"gsm8k": "5", "math": "2", "countdown": "30+93", "sudoku": "3142243142134444"}
BEST = {"gsm8k": 3.0, "math": 3.0, "countdown": 1.0, "sudoku": 1.0}
TASKS = tuple(RECORDS)


def run(task, tmp_path, *options):
    file = tmp_path / f"{task}.jsonl"
    file.write_text(json.dumps(RECORDS[task]) + "\n")
    few = ["--train-rows", "2"] if DATA_SETS[task].draw else []
    return main([task, "--test", str(file), "--output-dir", str(tmp_path / "out"), *few, *map(str, options)])


def rows_of(task, tmp_path, *options, split="validation"):
    assert run(task, tmp_path, *options) == 0
    return pq.read_table(tmp_path / "out" / f"{split}.parquet").to_pylist()


def content(row):
    (message,) = row["prompt"]
    assert message["role"] == "user"
    return message["content"]


@pytest.mark.parametrize("task", TASKS)
def test_the_published_form_is_instruction_tags_box_and_then_the_problem(tmp_path, task):
    (row,) = rows_of(task, tmp_path, "--style", "published")
    text = content(row)
    form = ["<reasoning>\n", "\n</reasoning>\n<answer>\n\\boxed{", "}\n</answer>\n\n", *PARTS[task]]
    places = [text.index(part) for part in form]
    assert places == sorted(places) and places[0] > 50
    assert text.endswith(PARTS[task][-1])
    assert row["extra_info"]["style"] == "published"


@pytest.mark.parametrize("task", TASKS)
def test_the_own_form_is_the_default_and_carries_no_style(tmp_path, task):
    (row,) = rows_of(task, tmp_path)
    assert "style" not in row["extra_info"]
    assert all(part in content(row) for part in PARTS[task])
    assert rows_of(task, tmp_path, "--style", "project") == [row]
    (published,) = rows_of(task, tmp_path, "--style", "published")
    assert content(published) != content(row)
    assert published["reward_model"] == row["reward_model"]
    assert {**published["extra_info"], "style": None} == {**row["extra_info"], "style": None}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("beginning", ["", "<reasoning>\n"])
def test_scorers_read_the_published_form(tmp_path, task, beginning):
    (row,) = rows_of(task, tmp_path, "--style", "published")
    info = dict(row["extra_info"])
    task_name, extra = info.pop("task"), {name: info[name] for name in rewards.get_task(task).extra if name in info}

    def score(answer):
        text = f"{beginning}First 7, then 9.\n</reasoning>\n<answer>\n\\boxed{{{answer}}}\n</answer>"
        return rewards.score(task_name, text, row["reward_model"]["ground_truth"], **extra)

    assert score(ANSWERS[task])["acc"] == 1.0 and score(ANSWERS[task])["score"] == BEST[task]
    assert score(WRONG[task])["acc"] < 1.0 and score(WRONG[task])["score"] < BEST[task]


@pytest.mark.parametrize("task", ["countdown", "sudoku"])
def test_drawn_problems_take_the_style_too(tmp_path, task):
    rows = rows_of(task, tmp_path, "--style", "published", split="train")
    assert [row["extra_info"]["style"] for row in rows] == ["published"] * 2
    assert all("\n</reasoning>\n<answer>\n\\boxed{" in content(row) for row in rows)


@pytest.mark.parametrize("task", TASKS)
def test_a_template_of_the_users_own(tmp_path, task):
    names = DATA_SETS[task].templates.names
    file = tmp_path / "prompt.txt"
    text = "Größe {1, 2}, \\boxed{}, \\boxed{answer}, \\frac{a}{b}, {{literal}}:\n" + " ".join(
        f"{{{n}}}" for n in names
    )
    file.write_text(text + "\n\n", encoding="utf-8")
    (row,) = rows_of(task, tmp_path, "--template", file)
    expected = "Größe {1, 2}, \\boxed{}, \\boxed{answer}, \\frac{a}{b}, {literal}:\n" + " ".join(PARTS[task]) + "\n"
    assert content(row) == expected
    assert row["extra_info"]["style"] == "template"


@pytest.mark.parametrize(
    ("task", "text", "named"),
    [
        ("gsm8k", "Solve it.", "{question} is missing"),
        ("gsm8k", "Solve \\boxed{question}.", "{question} is missing"),
        ("gsm8k", "Solve {question} for {names}.", "unknown placeholder {names}"),
        ("countdown", "Use {numbers}.", "{target} is missing"),
        ("sudoku", "Solve {puzzle} {question}.", "unknown placeholder {question}"),
        ("math", "", "{question} is missing"),
    ],
)
def test_placeholders_that_do_not_fit_are_named_with_the_file_in_one_line(tmp_path, capsys, task, text, named):
    file = tmp_path / "prompt.txt"
    file.write_text(text)
    assert run(task, tmp_path, "--template", file) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(file) in error and named in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, b"\xff{question}"])
def test_a_template_that_cannot_be_read_is_named(tmp_path, capsys, content):
    file = tmp_path / "prompt.txt"
    if content is not None:
        file.write_bytes(content)
    assert run("gsm8k", tmp_path, "--template", file) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"cannot read the template {file}" in error


def test_style_and_template_exclude_each_other(tmp_path):
    with pytest.raises(SystemExit):
        run("gsm8k", tmp_path, "--style", "published", "--template", "x")
    with pytest.raises(SystemExit):
        run("gsm8k", tmp_path, "--style", "paper")


def test_filling_touches_the_template_alone():
    template = Template("{a}|{b}|{a}|{{a}}|\\text{a}{b}")
    assert template.placeholders() == ["a", "b", "a"]
    assert template.fill(a="{b}", b=[1]) == "{b}|[1]|{b}|{a}|\\text{a}{b}"
