"""Rows of supervised data as tokens: what is given, what is learned, where an answer ends, what is refused."""

import logging

import pytest
from transformers import AutoConfig, AutoTokenizer

from maskgrpo_plugin.data.sft_rows import RowReader, read_examples
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.families import build_family

TURNED = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TALK = [
    {"role": "user", "content": "1+1="},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "+3="},
    {"role": "assistant", "content": "5"},
]


@pytest.fixture
def tokenizer(make_model):
    return make_model.make_tokenizer()


def reader(tokenizer, **changes):
    stops = (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>"))
    return RowReader(tokenizer=tokenizer, stop_token_ids=stops, end_token_id=tokenizer.eos_token_id, **changes)


def texts(tokenizer, examples):
    return [(tokenizer.decode(e.prompt_ids), tokenizer.decode(e.answer_ids)) for e in examples]


def test_an_answer_that_the_template_does_not_end_gets_an_end_token(tokenizer):
    found = reader(tokenizer).read({"messages": TALK[:2]})
    assert texts(tokenizer, found) == [("<|bos|>1+1=", "2<|endoftext|>")]
    assert found[0].learned == (True, True)


def test_each_turn_of_the_assistant_is_learned_with_what_is_before_it_alone(tokenizer):
    tokenizer.chat_template = TURNED
    turns = [
        ("<|bos|><|user|>1+1=<|eot_id|><|assistant|>", "2<|eot_id|>"),
        (
            "<|bos|><|user|>1+1=<|eot_id|><|assistant|>2<|eot_id|><|user|>+3=<|eot_id|><|assistant|>",
            "5<|eot_id|>",
        ),
    ]
    assert texts(tokenizer, reader(tokenizer).read({"messages": TALK})) == turns
    assert texts(tokenizer, reader(tokenizer, turns="last").read({"messages": TALK})) == turns[1:]


def test_what_a_template_puts_behind_the_end_token_is_not_learned(tokenizer):
    tokenizer.chat_template = TURNED.replace("<|eot_id|>", "<|eot_id|> ")
    assert texts(tokenizer, reader(tokenizer).read({"messages": TALK[:2]}))[0][1] == "2<|eot_id|>"


def test_a_template_that_changes_the_prompt_is_refused(tokenizer):
    tokenizer.chat_template = "{% if messages|length > 1 %}-{% endif %}" + TURNED
    with pytest.raises(ValueError, match="changes the prompt"):
        reader(tokenizer).read({"messages": TALK[:2]})


def test_end_tokens_fill_a_text_and_are_learned(tokenizer):
    (example,) = reader(tokenizer).read({"messages": TALK[:2]})
    filled = example.filled(10, tokenizer.eos_token_id)
    assert len(filled) == 10 and filled.prompt_ids == example.prompt_ids
    assert tokenizer.decode(filled.answer_ids) == "2" + "<|endoftext|>" * 4 and all(filled.learned)
    assert example.filled(3, tokenizer.eos_token_id) == example


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({}, "messages is NoneType"),
        ({"messages": "hello"}, "messages is str"),
        ({"messages": TALK[:1]}, "no turn of the assistant"),
        ({"messages": TALK[1:]}, "no prompt"),
        ({"messages": [TALK[0], {"role": "assistant", "content": " "}]}, "message 1, the assistant's, is empty"),
        ({"messages": [{"content": "x"}]}, "no role"),
        ({"messages": [{"role": "user", "content": None}]}, "no text"),
        ({"messages": TALK, "image_codes": [1, 2]}, "no image tokens"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_or_counted(tokenizer, caplog, row, problem):
    rows = [{"messages": TALK[:2]}, row]
    settings = {"key": "data.train_files", "name": "a.parquet", "max_length": 20}
    with pytest.raises(OptionError, match=r"a\.parquet, row 1") as caught:
        read_examples(rows, reader(tokenizer), **settings)
    assert problem in str(caught.value) and caught.value.key == "data.train_files"
    with caplog.at_level(logging.WARNING):
        assert len(read_examples(rows, reader(tokenizer), bad_rows="skip", **settings)) == 1
    assert "a.parquet: 1 cannot be read" in caplog.text and problem in caplog.text
    with pytest.raises(OptionError, match="no row can be used"):
        read_examples(rows[1:], reader(tokenizer), bad_rows="skip", **settings)


def test_a_long_example_is_refused_cut_or_left_out(tokenizer, caplog):
    rows = [{"messages": TALK[:2]}, {"messages": [TALK[0], {"role": "assistant", "content": "1234567"}]}]
    settings = {"key": "data.train_files", "name": "a.parquet", "max_length": 9}
    with pytest.raises(OptionError, match=r"row 1.*13 tokens.*data\.max_length=9"):
        read_examples(rows, reader(tokenizer), **settings)
    with caplog.at_level(logging.WARNING):
        cut = read_examples(rows, reader(tokenizer), truncation="right", **settings)
        left = read_examples(rows, reader(tokenizer), truncation="skip", **settings)
    assert texts(tokenizer, cut)[1] == ("<|bos|>1+1=", "1234") and len(left) == 1
    assert "1 are cut" in caplog.text and "1 are left out as too long" in caplog.text
    with pytest.raises(OptionError, match="no row can be used"):  # no room for an answer
        read_examples(rows, reader(tokenizer), truncation="right", **(settings | {"max_length": 5}))


def test_rows_are_kept_and_examples_made_when_they_are_asked_for(tokenizer):
    class Counted(list):
        asked = 0

        def __getitem__(self, number):
            self.asked += 1
            return super().__getitem__(number)

    rows = Counted({"messages": TALK} for _ in range(3))
    found = read_examples(rows, reader(tokenizer), key="data.train_files", name="a.parquet", max_length=20)
    assert len(found) == 6 and rows.asked == 0
    assert found[3] == reader(tokenizer).read(rows[1])[1] and rows.asked == 2
    assert list(found) == [example for row in list(rows) for example in reader(tokenizer).read(row)]


@pytest.fixture
def images(tiny_digits):
    folder = tiny_digits / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return build_family(AutoConfig.from_pretrained(folder), tokenizer)


def test_an_image_is_learned_after_its_caption_and_what_closes_it_is_not(images):
    rows, columns = images.default_grid()
    codes = [n % images.image.codebook_size for n in range(rows * columns)]
    (found,) = reader(images.tokenizer, family=images).read({"caption": "3", "image_codes": codes})
    layout = images.text_to_image("3")
    kept = [token for token, mask in zip(layout.prompt_ids, layout.prompt_mask, strict=True) if mask]
    assert list(found.prompt_ids) == kept and found.is_image
    learned = [token for token, is_learned in zip(found.answer_ids, found.learned, strict=True) if is_learned]
    assert learned == [code + images.image.offset for code in codes]
    assert len(found.answer_ids) == len(layout.response_ids) and found.answer_ids[-1] == layout.response_ids[-1]
    assert found.filled(500, 2) == found
    empty = [token for token, mask in zip(layout.uncond_ids, layout.uncond_mask, strict=True) if mask]
    assert list(found.without_caption().prompt_ids) == empty


def test_a_conversation_about_an_image_is_laid_out_as_in_a_rollout(images):
    rows, columns = images.default_grid()
    codes = [1] * (rows * columns)
    talk = [{"role": "user", "content": "which digit is this"}, {"role": "assistant", "content": "seven"}]
    (found,) = reader(images.tokenizer, family=images).read({"messages": talk, "image_codes": codes})
    assert found.prompt_ids == images.understanding(codes, talk[:1], 1).prompt_ids
    answer = (images.tokenizer.convert_tokens_to_ids("seven"), images.tokenizer.eos_token_id)
    assert not found.is_image and found.answer_ids == answer


@pytest.mark.parametrize(
    ("codes", "problem"), [([1, 2], "2 image codes"), ([], "none"), ([10**6], "allowed are 0 to"), ("12", "is str")]
)
def test_codes_that_are_no_image_are_refused(images, codes, problem):
    with pytest.raises(ValueError, match=problem):
        reader(images.tokenizer, family=images).read({"caption": "3", "image_codes": codes})


def test_examples_are_made_once_as_far_as_there_is_room_for_their_tokens(tokenizer, monkeypatch):
    """Room for two rows of seven tokens: the third is made anew each time, and all stay what they are."""
    monkeypatch.setattr("maskgrpo_plugin.data.sft_rows.HELD_TOKENS", 14)

    class Counting:
        def __init__(self):
            self.inner, self.read_rows = reader(tokenizer), []

        def read(self, row):
            self.read_rows.append(row)
            return self.inner.read(row)

    rows = [{"messages": [TALK[0], {"role": "assistant", "content": str(n)}]} for n in range(3)]
    counting = Counting()
    examples = read_examples(rows, counting, key="data.train_files", name="rows", max_length=7)
    counting.read_rows.clear()
    for _ in range(3):
        assert texts(tokenizer, [examples[n] for n in range(3)]) == [
            ("<|bos|>1+1=", f"{n}<|endoftext|>") for n in range(3)
        ]
    assert counting.read_rows == [rows[0], rows[1], rows[2], rows[2], rows[2]]
