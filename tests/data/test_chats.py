"""Conversations for SFT: the forms that are read, the split by a share, and records that cannot be used."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskgrpo_plugin.data.chats import TEMPLATES, chat_messages
from maskgrpo_plugin.data.prepare import main
from maskgrpo_plugin.data.records import BadRecord
from maskgrpo_plugin.data.splits import is_in_share

S1K = {
    "question": "What is 1+1?",
    "solution": "2",
    "cot_type": "math",
    "thinking_trajectories": ["one and one"],
    "attempt": "It is 2.",
}
GOOD = {"prompt": "Hello", "response": "Hi."}


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def prepare(folder, *arguments):
    return main(["chat", "--output-dir", str(folder), *map(str, arguments)])


def read(folder, split="train"):
    return [row["messages"] for row in pq.read_table(folder / f"{split}.parquet").to_pylist()]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


ONE = turns(("system", ""), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", " d\n"))
FORMS = [
    ({"messages": [{**turn, "name": None} for turn in ONE], "question": "not this"}, ONE),
    (
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
            ]
        },
        turns(("system", "s"), ("user", "a"), ("assistant", "b")),
    ),
    (GOOD, turns(("user", "Hello"), ("assistant", "Hi."))),
    ({"question": "Why?", "answer": "So.", "messages": None}, turns(("user", "Why?"), ("assistant", "So."))),
    (S1K, turns(("user", "What is 1+1?"), ("assistant", "It is 2."))),
    ({**S1K, "attempt": None}, turns(("user", "What is 1+1?"), ("assistant", "2"))),
]


@pytest.mark.parametrize(("record", "messages"), FORMS)
def test_each_form_gives_its_conversation(record, messages):
    assert chat_messages(record) == messages


def test_thinking_and_attempt_stand_in_tags_under_the_asked_instruction():
    template = TEMPLATES.styled("published")
    question, answer = chat_messages(S1K, "reasoning", template)
    assert answer["content"] == "<reasoning>one and one</reasoning>\n<answer>It is 2.</answer>"
    assert question["content"].endswith("\n\nWhat is 1+1?") and "<reasoning>" in question["content"]


BAD = [
    ([], "not an object"),
    ({"text": "a"}, "nothing under question or prompt.*it has text"),
    ({"question": "a", "text": "b"}, "nothing under attempt or answer or response or solution"),
    ({"question": 3, "answer": "b"}, "question that is no text.*int"),
    ({"prompt": turns(("user", "a")), "response": "b"}, "prompt that is no text.*list"),
    ({"question": " ", "answer": "b"}, "empty question"),
    ({"question": "a", "answer": "\n"}, "empty answer"),
    ({"question": "a", "answer": "\ud800"}, "answer that is no Unicode"),
    ({"messages": []}, "no assistant turn"),
    ({"messages": "a"}, "no list of objects"),
    ({"messages": ["a"]}, "no list of objects"),
    ({"messages": turns(("user", "a"))}, "no assistant turn"),
    ({"messages": turns(("system", "s"), ("assistant", "a"), ("user", "b"))}, "before the user's first.*turn 2"),
    ({"messages": turns(("user", "a"), ("assistant", ""))}, "empty assistant turn.*turn 2"),
    ({"messages": turns(("user", "a"), ("assistant", None))}, "assistant turn that is no text.*turn 2: NoneType"),
    ({"messages": turns(("user", "a"), ("tool", "b"))}, "unknown role.*turn 2 has 'tool'.*system, user, assistant"),
    ({"messages": turns(("user", "a"), (None, "b"))}, "unknown role"),
    ({"conversations": [{"from": "bot", "value": "a"}]}, "unknown role.*'bot'"),
    ({"conversations": [{"from": "human"}]}, "user turn that is no text"),
]


@pytest.mark.parametrize(("record", "message"), BAD)
def test_bad_records_are_refused_with_their_place_or_counted(tmp_path, capsys, caplog, record, message):
    path = write_lines(tmp_path / "a.jsonl", [GOOD, record, GOOD])
    with pytest.raises(Exception, match=message):
        chat_messages(record)
    out = tmp_path / "out"
    assert prepare(out, "--train", path, "--validation-share", 0) == 1
    assert f"{path}:2: " in capsys.readouterr().err and not out.exists()
    assert prepare(out, "--train", path, "--validation-share", 0, "--skip-bad") == 0
    assert len(read(out)) == 2 and "1 unusable record (1 × " in caplog.text and f"{path}:2: " in caplog.text


REASONING_ALONE = [
    ({"question": "a", "answer": "b"}, "no thinking_trajectories"),
    ({**S1K, "thinking_trajectories": []}, "no list of one text"),
    ({**S1K, "thinking_trajectories": ["a", "b"]}, "no list of one text.*2"),
    ({**S1K, "thinking_trajectories": [""]}, "empty thinking_trajectories"),
    ({"messages": ONE}, "no answer form"),
]


@pytest.mark.parametrize(("record", "message"), REASONING_ALONE)
def test_reasoning_needs_one_text_of_thinking(record, message):
    with pytest.raises(BadRecord, match=message):
        chat_messages(record, "reasoning")


def test_a_conversation_takes_no_template():
    with pytest.raises(BadRecord, match="no template"):
        chat_messages({"messages": ONE}, template=TEMPLATES.styled("published"))


def test_bad_records_are_counted_by_reason_and_the_first_ten_named(tmp_path, caplog, capsys):
    bad = [{"question": "a", "answer": ""}] * 12 + [{"messages": turns(("user", "a"))}] * 2
    path = write_lines(tmp_path / "a.jsonl", [*bad, GOOD])
    assert prepare(tmp_path, "--train", path) == 1
    error = capsys.readouterr().err
    assert "14 unusable records (12 × empty answer, 2 × no assistant turn), of which the first 10 are" in error
    assert f"{path}:10: " in error and f"{path}:11: " not in error and "--skip-bad" in error
    assert prepare(tmp_path, "--train", path, "--skip-bad", "--validation-share", 0) == 0
    assert "12 × empty answer, 2 × no assistant turn" in caplog.text
    assert prepare(tmp_path, "--train", write_lines(tmp_path / "b.jsonl", bad), "--skip-bad") == 1
    assert "no usable row" in capsys.readouterr().err


def test_lines_lists_and_parquet_hold_the_same_rows(tmp_path):
    records = [S1K, {**S1K, "question": "And 2+2?"}]
    write_lines(tmp_path / "a.jsonl", records)
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "b.json").write_text("\n".join(map(json.dumps, records)))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "b.json", "a.parquet"):
        options = ("--answer-form", "reasoning", "--validation-share", 0)
        assert prepare(tmp_path / name[2:], "--train", tmp_path / name, *options) == 0
        assert read(tmp_path / name[2:]) == [chat_messages(record, "reasoning") for record in records]


@pytest.mark.parametrize("name", ["a.json", "a.parquet"])
def test_a_file_that_is_broken_as_a_whole_is_named(tmp_path, capsys, name):
    (tmp_path / name).write_text("[{")
    assert prepare(tmp_path, "--train", tmp_path / name, "--skip-bad") == 1
    assert f"cannot read {tmp_path / name}" in capsys.readouterr().err


def questions(count):
    return [{"question": f"question {n}", "answer": "yes"} for n in range(count)]


def test_the_share_of_validation_depends_on_row_and_seed_alone(tmp_path):
    few, many = (write_lines(tmp_path / f"{n}.jsonl", questions(n)) for n in (300, 600))
    drawn = {}
    for name, path, seed in (("few", few, 0), ("many", many, 0), ("other", few, 1)):
        share = ("--validation-share", 0.2, "--seed", seed)
        assert prepare(tmp_path / name, "--train", path, *share) == 0
        parts = [read(tmp_path / name, split) for split in ("train", "validation")]
        assert sorted(m[0]["content"] for part in parts for m in part) == sorted(
            r["question"] for r in questions(len(parts[0]) + len(parts[1]))
        )
        drawn[name] = {m[0]["content"] for m in parts[1]}
    assert drawn["few"] == {text for text in drawn["many"] if int(text.split()[1]) < 300}
    assert 30 < len(drawn["few"]) < 90 and drawn["few"] != drawn["other"]


def test_shares_nest_and_have_their_size():
    rows = [str(n).encode() for n in range(4000)]
    small, large = ({row for row in rows if is_in_share(row, share, 3)} for share in (0.1, 0.5))
    assert small < large and 340 < len(small) < 460 and 1850 < len(large) < 2150
    assert not any(is_in_share(row, 0, 3) for row in rows) and all(is_in_share(row, 1, 3) for row in rows)


def test_a_test_file_is_validation_whole(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", questions(3))
    test = write_lines(tmp_path / "b.jsonl", [GOOD])
    assert prepare(tmp_path, "--train", path, "--test", test) == 0
    assert len(read(tmp_path)) == 3 and read(tmp_path, "validation") == [chat_messages(GOOD)]
    assert prepare(tmp_path, "--train", path, "--validation-share", 0) == 1  # validation.parquet would be stale
    (tmp_path / "validation.parquet").unlink()
    assert prepare(tmp_path, "--train", path, "--validation-share", 0) == 0


@pytest.mark.parametrize("share", [0.0001, 1, 1.5, -1])
def test_a_share_that_leaves_a_part_empty_is_refused(tmp_path, capsys, share):
    path = write_lines(tmp_path / "a.jsonl", questions(3))
    assert prepare(tmp_path / "out", "--train", path, "--validation-share", share) == 1
    assert "--validation-share" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_verls_sft_dataset_reads_the_rows(tmp_path, tiny_run):
    from omegaconf import OmegaConf
    from transformers import AutoTokenizer
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

    path = write_lines(tmp_path / "a.jsonl", [{"question": "1+2=", "answer": "3"}, {"question": "3+4=", "answer": "7"}])
    assert prepare(tmp_path, "--train", path, "--validation-share", 0) == 0
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    config = OmegaConf.create({"max_length": 16, "pad_mode": "no_padding", "ignore_input_ids_mismatch": True})
    data = MultiTurnSFTDataset(str(tmp_path / "train.parquet"), tokenizer, config)
    assert len(data) == 2 and data.messages[1] == turns(("user", "3+4="), ("assistant", "7"))
    learned = data[1]["input_ids"][data[1]["loss_mask"].bool()]
    assert "7" in tokenizer.decode(learned) and "3" not in tokenizer.decode(learned)
