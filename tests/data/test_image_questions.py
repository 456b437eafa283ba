"""Images with questions as rows for SFT and RL: forms, rows, codes computed once, interruption, and bad input."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import picture, png

from maskgrpo_plugin.data.image_encoder import ImageEncoder
from maskgrpo_plugin.data.image_questions import main
from maskgrpo_plugin.data.question_records import QuestionKeys, question_record
from maskgrpo_plugin.data.records import BadRecord
from maskgrpo_plugin.models.image_tokenizers import load_image_tokenizer

KEYS = QuestionKeys.of(None, None, None)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def llava(*turns):
    roles = ("human", "gpt")
    return [{"from": roles[n % 2], "value": text} for n, text in enumerate(turns)]


@pytest.fixture
def questions(tmp_path):
    """A file of six questions about three pictures beside it."""
    folder = tmp_path / "vqa"
    (folder / "images").mkdir(parents=True)
    for n in range(3):
        (folder / "images" / f"{n}.png").write_bytes(png(picture(n)))
    records = [
        {"image": f"images/{n % 3}.png", "question": f"Question {n}?", "answer": ["no", "yes", "Yes", "yes"]}
        for n in range(4)
    ]
    records.append({"image": "images/1.png", "question": "How many?", "answer": 2})
    turns = ("<image>\nWhat is it?", "A digit.", "Which one?", "Seven.")
    records.append({"id": "a", "image": "images/2.png", "conversations": llava(*turns)})
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def run(tmp_path, tiny_digits):
    """The command with the tiny image tokenizer at 8 pixels, and small shards, into `out`."""

    def command(*arguments, out="out"):
        common = ["--image-tokenizer", tiny_digits / "vq", "--resolution", 8, "--batch-size", 2, "--rows-per-shard", 2]
        common += ["--device", "cpu", "--workers", 2, "--output-dir", tmp_path / out]
        return main([str(part) for part in (*common, *arguments)])

    return command


def read(folder, name="train"):
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def test_rows_for_sft_hold_conversation_and_codes(tmp_path, run, questions, tiny_digits, capsys):
    assert run("--input", questions, "--for", "sft") == 0
    assert "sft/train.parquet: 6 rows" in capsys.readouterr().out
    rows = read(tmp_path / "out" / "sft")
    assert list(rows[0]) == ["messages", "image_codes", "height", "width", "source"]
    assert [row["messages"] for row in rows] == [
        *([user(f"Question {n}?"), assistant("yes")] for n in range(4)),
        [user("How many?"), assistant("2")],
        [user("What is it?"), assistant("A digit."), user("Which one?"), assistant("Seven.")],
    ]
    tokenizer = load_image_tokenizer(str(tiny_digits / "vq"))
    for row, n in zip(rows, (0, 1, 2, 0, 1, 2), strict=True):
        pixels = torch.tensor(picture(n)).permute(2, 0, 1)[None] / 127.5 - 1
        assert row["image_codes"] == tokenizer.get_code(pixels)[0].tolist()
        assert (row["height"], row["width"]) == (4, 4)
    assert [row["source"] for row in rows] == [f"{questions}:{n}" for n in range(1, 7)]


def test_rows_for_rl_are_laid_out_and_scored_as_a_run_does(tmp_path, run, questions, tiny_digits):
    from transformers import AutoConfig, AutoTokenizer

    from maskgrpo_plugin.data.checks import conversation_problem
    from maskgrpo_plugin.models.families import build_family
    from maskgrpo_plugin.rewards import score
    from maskgrpo_plugin.workers.rollout.requests import RequestBuilder

    assert run("--input", questions, "--for", "rl", "--task", "short_answer", "--data-source", "vqa") == 0
    rows, codes = read(tmp_path / "out" / "rl"), read(tmp_path / "out" / "codes", "codes-00000")
    assert rows[0] == {
        "data_source": "vqa",
        "prompt": [user("Question 0?")],
        "ability": "image_question",
        "reward_model": {"style": "rule", "ground_truth": '["no", "yes", "Yes"]'},
        "extra_info": {
            "split": "train",
            "index": 0,
            "task": "short_answer",
            "modality": "mmu",
            "image_codes": codes[0]["image_codes"],
            "source": f"{questions}:1",
        },
    }
    assert [row["extra_info"]["index"] for row in rows] == list(range(6))
    assert rows[5]["prompt"] == [user("What is it?"), assistant("A digit."), user("Which one?")]
    truths = [row["reward_model"]["ground_truth"] for row in rows]
    assert truths[4:] == ["2", "Seven."]
    assert [score("short_answer", text, truths[n])["acc"] for n, text in ((0, "no"), (4, "two"), (5, "7"))] == [1, 1, 1]

    folder = tiny_digits / "model"
    family = build_family(AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    builder = RequestBuilder(family.tokenizer, family)
    for row in rows:
        assert conversation_problem(row["prompt"]) is None
        request = builder.build(row["prompt"], row["extra_info"], 5)
        image = torch.tensor(request.prompt_ids[2 : 2 + 16])
        assert family.image.to_codes(image).tolist() == row["extra_info"]["image_codes"]
        assert request.new_tokens == 5


def test_both_kinds_come_from_codes_computed_once(tmp_path, run, questions, monkeypatch):
    sizes, encode = [], ImageEncoder.__call__
    monkeypatch.setattr(
        ImageEncoder, "__call__", lambda self, images: sizes.append(len(images)) or encode(self, images)
    )
    wide = ("--input", questions, "--rows-per-shard", 6)
    assert run(*wide, "--for", "sft") == 0
    assert sizes == [2, 1]  # three images of six questions
    assert run(*wide, "--for", "rl", "sft", "--task", "short_answer") == 0
    assert sizes == [2, 1]
    sft, rl = (read(tmp_path / "out" / use) for use in ("sft", "rl"))
    assert [row["image_codes"] for row in sft] == [row["extra_info"]["image_codes"] for row in rl]


def test_an_image_is_on_one_side_of_the_split_with_all_its_questions(tmp_path, run, questions):
    records = []
    for n in range(40):
        (questions.parent / "images" / f"{n}.png").write_bytes(png(picture(n)))
        records += [{"image": f"images/{n}.png", "question": f"q{q}", "answer": str(n)} for q in range(2)]
    questions.write_text("\n".join(map(json.dumps, records)))
    share = ("--validation-share", 0.3, "--rows-per-shard", 30)
    assert run("--input", questions, "--for", "sft", "rl", "--task", "short_answer", *share) == 0
    for use in ("sft", "rl"):
        parts = [read(tmp_path / "out" / use, split) for split in ("train", "validation")]
        assert len(parts[0]) + len(parts[1]) == 80 and 6 <= len(parts[1]) <= 44
        numbers = [
            sorted(row["source"] if use == "sft" else row["extra_info"]["source"] for row in part) for part in parts
        ]
        pairs = [{(int(place.rpartition(":")[2]) - 1) // 2 for place in part} for part in numbers]
        assert not pairs[0] & pairs[1]
    assert [row["extra_info"]["index"] for row in parts[1]] == list(range(len(parts[1])))
    assert {row["extra_info"]["split"] for row in parts[1]} == {"validation"}
    assert run("--input", questions, "--for", "sft", "--rows-per-shard", 30) == 1  # its validation.parquet would stay


def test_parquet_with_images_in_it(tmp_path, run):
    images = [{"bytes": png(picture(n)), "path": None} for n in range(2)]
    columns = {"picture": images, "ask": ["a?", "b?"], "says": [["x"], ["y", "z"]]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    keys = ("--image-key", "picture", "--question-key", "ask", "--answer-key", "says")
    assert run("--input", tmp_path / "a.parquet", *keys, "--for", "sft", "rl", "--task", "short_answer") == 0
    assert [row["messages"][1]["content"] for row in read(tmp_path / "out" / "sft")] == ["x", "y"]
    rows = read(tmp_path / "out" / "rl")
    assert [row["reward_model"]["ground_truth"] for row in rows] == ["x", '["y", "z"]'] and rows[0][
        "data_source"
    ] == "a"


def test_images_may_lie_elsewhere(tmp_path, run, questions):
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{"image": "0.png", "conversations": llava("What?\n<image>", "This.")}]))
    assert run("--input", other, "--for", "sft") == 1
    assert run("--input", other, "--for", "sft", "--image-dir", questions.parent / "images", "--overwrite") == 0
    assert read(tmp_path / "out" / "sft")[0]["messages"] == [user("What?"), assistant("This.")]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("batches", range(3))
def test_an_interrupted_call_is_taken_up_and_gives_the_same_files(tmp_path, run, questions, monkeypatch, batches):
    arguments = ("--input", questions, "--for", "sft", "rl", "--task", "short_answer")
    assert run(*arguments, out="whole") == 0
    encode, left = ImageEncoder.__call__, iter(range(batches))

    def limited(self, images):
        if next(left, None) is None:
            raise Interrupted
        return encode(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(ImageEncoder, "__call__", limited)
        with pytest.raises(Interrupted):
            run(*arguments)
    found = sorted(path.name for path in (tmp_path / "out").rglob("*.*"))
    assert found == [f"codes-{n:05d}.parquet" for n in range(batches)] + ["manifest.json"]
    assert run(*arguments) == 0
    whole = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in (tmp_path / "whole").rglob("*.*")}
    assert {path.relative_to(tmp_path / "out"): path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == whole
    assert len(whole) == 6


BAD = [
    ([], "not an object"),
    ({"question": "q", "answer": "a"}, "question without an image"),
    ({"image": "", "question": "q", "answer": "a"}, "record without an image"),
    ({"image": "../x.png", "question": "q", "answer": "a"}, "not relative"),
    ({"image": "x.png", "answer": "a"}, "nothing under question"),
    ({"image": "x.png", "question": " ", "answer": "a"}, "empty question"),
    ({"image": "x.png", "question": 3, "answer": "a"}, "question that is no text"),
    ({"image": "x.png", "question": "<image>", "answer": "a"}, "empty question beside <image>"),
    ({"image": "x.png", "question": "<image> <image> q", "answer": "a"}, "more than one <image>"),
    ({"image": "x.png", "question": "q"}, "nothing under answer or answers"),
    ({"image": "x.png", "question": "q", "answer": ""}, "empty answer"),
    ({"image": "x.png", "question": "q", "answers": []}, "empty answers"),
    ({"image": "x.png", "question": "q", "answers": ["a", ""]}, "empty answers"),
    ({"image": "x.png", "question": "q", "answer": True}, "answer that is no text"),
    ({"image": "x.png", "question": "q", "answers": [{"answer": "a"}]}, "answers that is no text"),
    ({"image": "x.png", "conversations": llava("<image> q")}, "no assistant turn"),
    ({"image": "x.png", "conversations": llava("q", "a")}, "<image> that is not in the user's first turn"),
    ({"image": "x.png", "conversations": llava("<image> q", "a", "<image> r", "b")}, "first turn alone"),
    ({"image": "x.png", "conversations": llava("<image>", "a")}, "empty question beside <image>"),
    ({"image": "x.png", "messages": [{"role": "robot", "content": "<image>"}]}, "unknown role"),
]


@pytest.mark.parametrize(("record", "message"), BAD)
def test_bad_records_are_named(tmp_path, record, message):
    with pytest.raises(Exception, match=message):
        question_record(record, KEYS, tmp_path)


def test_messages_are_taken_as_conversations_are(tmp_path):
    messages = [{"role": "system", "content": ""}, user("<image>\nq"), assistant("a"), user("r")]
    found = question_record({"image": "x.png", "messages": messages}, KEYS, tmp_path)
    assert found.image == tmp_path / "x.png"
    assert found.fields == {
        "messages": [{"role": "system", "content": ""}, user("q"), assistant("a"), user("r")],
        "answers": [],
    }


def test_bad_records_are_refused_or_left_out_with_their_count(tmp_path, run, questions, caplog, capsys):
    with questions.open("a") as file:
        file.write('{"image": "images/none.png", "question": "q", "answer": "a"}\n{"question": "q", "answer": "a"}\n')
    arguments = ("--input", questions, "--for", "sft")
    assert run(*arguments) == 1
    assert f"{questions}:7: image that does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out" / "sft").exists()
    assert run(*arguments, "--skip-bad") == 0
    assert "1 × image that does not exist, 1 × question without an image" in caplog.text
    assert len(read(tmp_path / "out" / "sft")) == 6


def test_answers_that_the_task_cannot_judge_are_refused_or_left_out(tmp_path, run, questions, caplog, capsys):
    turns = llava("<image> q", "a", "r")
    with questions.open("a") as file:
        file.write(json.dumps({"image": "images/0.png", "conversations": turns}) + "\n")
    arguments = ("--input", questions, "--for", "rl", "--task", "arithmetic")
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert "5 × answer that the task arithmetic cannot judge" in error and "1 × conversation that does not end" in error
    assert not list((tmp_path / "out" / "rl").iterdir())
    assert run(*arguments, "--skip-bad") == 0
    rows = read(tmp_path / "out" / "rl")
    assert [row["reward_model"]["ground_truth"] for row in rows] == ["2"] and rows[0]["extra_info"]["index"] == 0
    assert "6 unusable records" in caplog.text


BAD_OPTIONS = [
    (["--for", "rl"], "--task=None"),
    (["--for", "rl", "--task", "chess"], "--task='chess'"),
    (["--input", "none.jsonl", "--for", "sft"], "--input='none.jsonl'"),
    (["--input", ".", "--for", "sft"], "--input='.'"),
    (["--for", "sft", "--validation-share", 2], "--validation-share=2.0"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_OPTIONS)
def test_bad_options_are_named(tmp_path, run, questions, capsys, arguments, message):
    assert run("--input", questions, *arguments) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_file_of_another_kind_is_refused(tmp_path, run, capsys):
    (tmp_path / "a.csv").write_text("image,question,answer\n")
    assert run("--input", tmp_path / "a.csv", "--for", "sft") == 1
    assert "allowed: .jsonl, .json, .parquet" in capsys.readouterr().err


def test_a_text_without_an_image_is_no_conversation_about_one():
    with pytest.raises(BadRecord, match=r"question without an image.*it has conversations"):
        question_record({"conversations": llava("q", "a")}, KEYS, None)
