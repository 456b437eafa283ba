"""The beginning of an answer that the evaluation gives to the model: where it stands, and that it is scored."""

import json
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from maskgrpo_plugin.evaluate import main, prepare_task
from maskgrpo_plugin.evaluation.problems import Problem, make_request
from maskgrpo_plugin.models.families.base import encode_chat
from maskgrpo_plugin.workers.rollout.requests import RequestBuilder, request_seed

VARIED = Path(__file__).parents[1] / "e2e" / "varied_reward.py"
STYLES = {"published": "<reasoning>", "template": "", None: ""}


@pytest.fixture(scope="module")
def tokenizer(tiny_run):
    return AutoTokenizer.from_pretrained(tiny_run / "model")


def problem(style=None):
    row = {"data_source": "arithmetic", "prompt": [{"role": "user", "content": "1+2="}], "extra_info": {"style": style}}
    return Problem("arithmetic/0", 0, row)


@pytest.mark.parametrize("style", STYLES)
def test_the_style_of_the_row_decides_where_nothing_is_given(tokenizer, style):
    plain = encode_chat(tokenizer, problem().messages)
    prefix = tokenizer(STYLES[style], add_special_tokens=False)["input_ids"]
    builder = RequestBuilder(tokenizer, None)
    query = make_request(problem(style), builder, 8)
    assert query.prompt_ids == [*plain, *prefix] and query.prefix_ids == tuple(prefix) and query.new_tokens == 8
    given = make_request(problem(style), builder, 8, "12")
    assert tokenizer.decode(given.prefix_ids) == "12" and given.prompt_ids == [*plain, *given.prefix_ids]
    assert make_request(problem(style), builder, 8, "").prompt_ids == plain


@pytest.mark.parametrize("model", ["model", "model_ar"])
def test_the_prefix_stands_before_the_masks_and_is_scored(tiny_run, tokenizer, tmp_path, model):
    data = tiny_run / "data" / "validation.parquet"
    out = tmp_path / "out"
    options = ["--model", str(tiny_run / model), "--data", str(data), "--output-dir", str(out), "--limit", "6"]
    options += ["--lengths", "8", "--block-length", "4", "--batch-size", "6", "--temperature", "1"]
    options += ["--token-ids", "--set", f"reward.custom_reward_function.path={VARIED}"]
    assert main([*options, "--answer-prefix", "12"]) == 0
    rows = [json.loads(line) for line in (out / "generations.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    prefix = tokenizer("12", add_special_tokens=False)["input_ids"]
    for row in rows:
        number = int(row["id"].split("/")[1])
        prompt_ids = encode_chat(tokenizer, [{"role": "user", "content": row["prompt"]}])
        assert row["seed"] == request_seed(0, 0, number, 0, [*prompt_ids, *prefix])
        answer = tokenizer.decode(row["token_ids"][: row["effective_tokens"]], skip_special_tokens=True)
        assert row["text"] == "12" + answer
        assert row["score"] == zlib.crc32(row["text"].encode()) % 1000 / 1000
        assert len(row["token_ids"]) <= 8


def test_another_prefix_is_another_evaluation(tiny_run, tmp_path, capsys):
    options = ["--model", str(tiny_run / "model"), "--data", str(tiny_run / "data" / "validation.parquet")]
    options += ["--output-dir", str(tmp_path), "--lengths", "8", "--block-length", "4", "--limit", "1"]
    assert main(options) == 0
    assert main([*options, "--answer-prefix", "1"]) == 1
    assert "answer_prefix='1'" in capsys.readouterr().err


def test_images_have_no_prefix(tiny_digits, tmp_path, capsys):
    options = ["--model", str(tiny_digits / "model"), "--data", str(tiny_digits / "data" / "validation.parquet")]
    options += ["--image-tokenizer", str(tiny_digits / "vq"), "--output-dir", str(tmp_path), "--answer-prefix", "a"]
    assert main(options) == 1
    assert "--answer-prefix='a'" in capsys.readouterr().err


def test_tasks_are_prepared_in_the_style_asked_for(tmp_path):
    own, published = (prepare_task("sudoku", tmp_path, style) for style in ("project", "published"))
    rows = [pq.read_table(file).to_pylist()[0] for file in (own, published)]
    assert ["style" in row["extra_info"] for row in rows] == [False, True]
    assert prepare_task("sudoku", tmp_path, "published") == published
    with pytest.raises(ValueError, match=r"--style='published' is not usable.*arithmetic.*sudoku"):
        prepare_task("arithmetic", tmp_path, "published")
