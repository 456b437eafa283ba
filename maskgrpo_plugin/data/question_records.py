"""Images with a question and its answers, or with a conversation, out of JSON files and parquet."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from maskgrpo_plugin.data.chats import (
    ROLES,
    SHAREGPT_ROLES,
    Message,
    checked_text,
    one_text,
    question_and_answer,
    turns,
)
from maskgrpo_plugin.data.image_records import IMAGE_KEYS, ImageRecord, Records, image_of
from maskgrpo_plugin.data.records import BadRecord, DataError, as_object, first_key, read_file, shown_keys
from maskgrpo_plugin.errors import OptionError

QUESTION_KEYS, ANSWER_KEYS = ("question",), ("answer", "answers")
SUFFIXES = (".jsonl", ".json", ".parquet")
PLACEHOLDER = "<image>"
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
FIELDS = [("messages", MESSAGES), ("answers", pa.list_(pa.string()))]


class QuestionKeys(NamedTuple):
    """Names of a record's question, answer and image, of which the first that is there counts."""

    question: tuple[str, ...]
    answer: tuple[str, ...]
    image: tuple[str, ...]

    @classmethod
    def of(cls, question: str | None, answer: str | None, image: str | None) -> "QuestionKeys":
        """The given names; None: the usual ones."""
        return cls(
            (question,) if question else QUESTION_KEYS,
            (answer,) if answer else ANSWER_KEYS,
            (image,) if image else IMAGE_KEYS,
        )


def question_reader(path: Path, keys: QuestionKeys, image_dir: Path | None = None) -> Callable[[], Records]:
    """What reads one input, from its beginning at each call.

    Args:
        path: .jsonl, .json or .parquet.
        keys: see `QuestionKeys`.
        image_dir: what paths of images are relative to; None: the input's folder.

    Raises:
        OptionError: an input of no such kind.
    """
    if not path.is_file():
        raise OptionError("--input", str(path), "there is no such file")
    if path.suffix not in SUFFIXES:
        raise OptionError("--input", str(path), f"allowed: {', '.join(SUFFIXES)}")

    def read() -> Records:
        for place, record in read_file(path):
            try:
                yield place, question_record(record, keys, image_dir or path.parent)
            except DataError as error:
                yield place, error

    return read


def question_record(record: Any, keys: QuestionKeys, folder: Path) -> ImageRecord:
    """One record's image, its conversation without `<image>`, and the answers that are accepted.

    A record has `conversations` (from, value) or `messages` (role, content) with `<image>` once, in the user's first
    turn; or a question with one answer or a list of accepted ones. Of a list the most frequent answer, and of those the
    first, is the one to learn. Numbers count as texts.

    Args:
        record: an object.
        keys: see `QuestionKeys`.
        folder: what the image's path is relative to.

    Returns:
        a record with the fields `messages` and `answers`; of a conversation the one answer is its last turn, and there
        is none where that is the user's.

    Raises:
        BadRecord: something is missing, empty, or of a wrong type.
    """
    record = as_object(record)
    image = first_key(record, keys.image)
    if image is None:
        raise BadRecord("question without an image", f"nothing under {', '.join(keys.image)}; {shown_keys(record)}")
    if record.get("conversations") is not None:
        messages = _about_image(turns(record["conversations"], "from", "value", SHAREGPT_ROLES))
    elif record.get("messages") is not None:
        messages = _about_image(turns(record["messages"], "role", "content", ROLES))
    else:
        question, accepted = one_text(record, *keys.question), _answers(record, keys.answer)
        if PLACEHOLDER in question:
            question = _without_placeholder(question)
        fields = {
            "messages": question_and_answer(question, max(accepted, key=accepted.count)),
            "answers": list(dict.fromkeys(accepted)),
        }
        return ImageRecord(image_of(record[image], folder), fields)
    last = messages[-1]
    answers = [last["content"]] if last["role"] == "assistant" else []
    return ImageRecord(image_of(record[image], folder), {"messages": messages, "answers": answers})


def _about_image(messages: list[Message]) -> list[Message]:
    """The conversation without `<image>`, which stands once, in the user's first turn."""
    first = next(n for n, message in enumerate(messages) if message["role"] == "user")
    elsewhere = any(PLACEHOLDER in message["content"] for n, message in enumerate(messages) if n != first)
    if PLACEHOLDER not in messages[first]["content"] or elsewhere:
        raise BadRecord(f"{PLACEHOLDER} that is not in the user's first turn alone")
    messages[first]["content"] = _without_placeholder(messages[first]["content"])
    return messages


def _without_placeholder(text: str) -> str:
    if text.count(PLACEHOLDER) > 1:
        raise BadRecord(f"more than one {PLACEHOLDER}")
    return checked_text(text.replace(PLACEHOLDER, "").strip(), f"question beside {PLACEHOLDER}")


def _answers(record: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    name = first_key(record, names)
    if name is None:
        raise BadRecord(f"nothing under {' or '.join(names)}", shown_keys(record))
    value = record[name]
    values = value if isinstance(value, list) else [value]
    if not values:
        raise BadRecord(f"empty {name}")
    is_number = [isinstance(each, int | float) and not isinstance(each, bool) for each in values]
    texts = [str(each) if number else each for each, number in zip(values, is_number, strict=True)]
    return [checked_text(each, name).strip() for each in texts]
