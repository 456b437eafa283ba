"""Rows of supervised data as token ids: conversations, images of captions, and conversations about images."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.families import Family, ImageFamily
from maskgrpo_plugin.models.families.base import encode_chat, visible

logger = logging.getLogger(__name__)

TURNS = ("all", "last")
TRUNCATIONS = ("error", "right", "skip")
BAD_ROWS = ("error", "skip")
MESSAGES, CAPTION, CODES = "messages", "caption", "image_codes"
SHOWN = 5  # left-out rows that are named
HELD_TOKENS = 2**20  # of a file; some tens of megabytes


@dataclass(frozen=True)
class Example:
    """What is given and what is learned.

    Attributes:
        prompt_ids: the tokens that are given.
        answer_ids: the tokens after them.
        learned: for each of `answer_ids`, whether it is learned; those that close an image are not.
        is_image: whether the answer is an image.
        uncond_ids: the prompt without its caption, which takes its place where the caption is dropped; empty: none.
        grid: rows and columns of an image's tokens; None for a text.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    learned: tuple[bool, ...]
    is_image: bool = False
    uncond_ids: tuple[int, ...] = ()
    grid: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)

    def filled(self, length: int, end_token_id: int) -> "Example":
        """With end tokens behind the answer, learned too, up to `length` tokens in all; images stay as they are."""
        missing = length - len(self)
        if self.is_image or missing <= 0:
            return self
        return replace(
            self,
            answer_ids=self.answer_ids + (end_token_id,) * missing,
            learned=self.learned + (True,) * missing,
        )

    def cut(self, length: int) -> "Example":
        """With the answer cut, so that it is of `length` tokens in all at most."""
        room = length - len(self.prompt_ids)
        return replace(self, answer_ids=self.answer_ids[:room], learned=self.learned[:room])

    def without_caption(self) -> "Example":
        """With the prompt of no text, where the family has one."""
        return replace(self, prompt_ids=self.uncond_ids) if self.uncond_ids else self


@dataclass(frozen=True)
class RowReader:
    """Turns rows into examples.

    Attributes:
        tokenizer: of the checkpoint.
        stop_token_ids: ids that end a text; the last one in an answer is its end.
        end_token_id: what is put behind an answer that the chat template does not end.
        family: the checkpoint's, for rows with images; None: there may be none.
        messages_key: the column of conversations.
        turns: `all`: every turn of the assistant makes an example, with all before it as its prompt and nothing after
            it; `last`: the last one alone.
        template_kwargs: for the chat template.
    """

    tokenizer: Any
    stop_token_ids: tuple[int, ...]
    end_token_id: int
    family: Family | None = None
    messages_key: str = MESSAGES
    turns: str = "all"
    template_kwargs: Mapping[str, Any] | None = None

    def read(self, row: Mapping[str, Any]) -> list[Example]:
        """The examples of a row: of `messages`, of `caption` and `image_codes`, or of `messages` and `image_codes`.

        Raises:
            ValueError: what is wrong with the row.
        """
        codes = row.get(CODES)
        if codes is None:
            return [self._turn(messages) for messages in self._conversations(row)]
        if not isinstance(self.family, ImageFamily):
            raise ValueError(f"it has {CODES}, and the checkpoint has no image tokens")
        if row.get(CAPTION) is not None:
            return [self._image(self.family, row, codes)]
        return [self._about_image(self.family, row, codes, messages) for messages in self._conversations(row)]

    def _conversations(self, row: Mapping[str, Any]) -> list[list[dict[str, str]]]:
        """The conversation up to and with each turn of the assistant that is learned."""
        messages = [_message(each) for each in _list(row.get(self.messages_key), self.messages_key)]
        ends = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        if not ends:
            raise ValueError("it has no turn of the assistant")
        if ends[0] == 0:
            raise ValueError("its first message is the assistant's: there is no prompt")
        empty = [n for n in ends if not messages[n]["content"].strip()]
        if empty:
            raise ValueError(f"message {empty[0]}, the assistant's, is empty")
        return [messages[: end + 1] for end in (ends if self.turns == "all" else ends[-1:])]

    def _turn(self, messages: Sequence[Mapping[str, str]]) -> Example:
        prompt = encode_chat(self.tokenizer, messages[:-1], **(self.template_kwargs or {}))
        answer = self._answer(messages, prompt)
        return Example(tuple(prompt), answer, (True,) * len(answer))

    def _answer(self, messages: Sequence[Mapping[str, str]], prompt: Sequence[int]) -> tuple[int, ...]:
        """Tokens of the last message as the chat template renders it, up to and with its end token."""
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, **(self.template_kwargs or {}))
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if ids[: len(prompt)] != list(prompt):
            raise ValueError("the chat template changes the prompt once the answer follows, so that it cannot be cut")
        answer = ids[len(prompt) :]
        last = max((n for n, token in enumerate(answer) if token in self.stop_token_ids), default=None)
        return tuple(answer[: last + 1]) if last is not None else (*answer, self.end_token_id)

    def _image(self, family: ImageFamily, row: Mapping[str, Any], codes: Any) -> Example:
        tokens = family.image_token_ids(_list(codes, CODES))
        layout = family.text_to_image(str(row[CAPTION]), _grid(row))
        places = [n for n, written in enumerate(layout.response_mask) if written]
        if len(places) != len(tokens):
            raise ValueError(
                f"{len(tokens)} image codes; a grid of {_grid(row) or family.default_grid()} has another number"
            )
        answer = list(layout.response_ids)
        for place, token in zip(places, tokens, strict=True):
            answer[place] = token
        return Example(
            tuple(visible(layout.prompt_ids, layout.prompt_mask)),
            tuple(answer),
            tuple(bool(written) for written in layout.response_mask),
            is_image=True,
            uncond_ids=tuple(visible(layout.uncond_ids, layout.uncond_mask)),
            grid=_grid(row) or family.default_grid(),
        )

    def _about_image(
        self, family: ImageFamily, row: Mapping[str, Any], codes: Any, messages: Sequence[Mapping[str, str]]
    ) -> Example:
        layout = family.understanding(_list(codes, CODES), messages[:-1], 1, _grid(row), **(self.template_kwargs or {}))
        prompt = encode_chat(self.tokenizer, messages[:-1], **(self.template_kwargs or {}))
        answer = self._answer(messages, prompt)
        return Example(tuple(visible(layout.prompt_ids, layout.prompt_mask)), answer, (True,) * len(answer))


class Item(Protocol):
    """What a row becomes: an example, or a pair of them."""

    @property
    def is_image(self) -> bool:
        """Whether the answer is an image."""
        ...

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The tokens that are given."""
        ...

    def __len__(self) -> int:
        """Tokens of prompt and answer, of the longer one of a pair."""
        ...

    def cut(self, length: int) -> Any:
        """With at most `length` tokens."""
        ...


class Reader(Protocol):
    """Turns rows into items."""

    def read(self, row: Mapping[str, Any]) -> Sequence[Item]:
        """The items of a row, or ValueError with what is wrong with it."""
        ...


class Examples(Sequence[Any]):
    """The examples of a file, each made of its row when it is asked for: tokens as Python numbers take ten times the
    memory of the rows. Those that are asked for first, of `HELD_TOKENS` tokens in all, are kept.

    Args:
        rows: of the file.
        reader: makes examples of them.
        places: of each example: its row, and its number among the row's.
        max_length: most tokens; of a longer one the answer is cut.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], reader: Reader, places: Sequence[tuple[int, int]], max_length: int
    ):
        self.rows, self.reader, self.places, self.max_length = rows, reader, places, max_length
        self._held: dict[int, Any] = {}
        self._room = HELD_TOKENS

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: Any) -> Any:
        if number in self._held:
            return self._held[number]
        row, turn = self.places[number]
        example = self.reader.read(self.rows[row])[turn].cut(self.max_length)
        if len(example) <= self._room:
            self._held[number] = example
            self._room -= len(example)
        return example


def read_examples(
    rows: Sequence[Mapping[str, Any]],
    reader: Reader,
    *,
    key: str,
    name: str,
    max_length: int,
    truncation: str = "error",
    bad_rows: str = "error",
) -> Examples:
    """The examples of a file's rows, each of which is read once here to be checked.

    Args:
        rows: of the file, in its order.
        reader: makes them.
        key, name: of the setting that names the file, and the file, for messages.
        max_length: most tokens of prompt and answer.
        truncation: what becomes of a longer example: `error`, `right`: its answer is cut and has no end, `skip`: it is
            left out. An example whose prompt leaves no room for an answer cannot be cut.
        bad_rows: what becomes of a row that cannot be read: `error` or `skip`.

    Raises:
        OptionError: the first row that cannot be used, with its number from 0; or none is left.
    """
    places: list[tuple[int, int]] = []
    counts: Counter[str] = Counter()
    for number, row in enumerate(rows):
        try:
            found = reader.read(row)
        except ValueError as error:
            if bad_rows == "error":
                allowed = f"{error}; mend it, or set data.bad_rows=skip"
                raise OptionError(key, f"{name}, row {number}", allowed) from None
            _count(counts, "cannot be read", f"{name}, row {number}: {error}")
            continue
        for turn, example in enumerate(found):
            if len(example) <= max_length:
                places.append((number, turn))
            elif truncation == "right" and not example.is_image and len(example.prompt_ids) < max_length:
                places.append((number, turn))
                _count(counts, "are cut", f"{name}, row {number}: {len(example)} tokens")
            elif truncation == "error":
                allowed = f"it has {len(example)} tokens, and data.max_length={max_length}; or set data.truncation"
                raise OptionError(key, f"{name}, row {number}", f"{allowed} to right or skip")
            else:
                _count(counts, "are left out as too long", f"{name}, row {number}: {len(example)} tokens")
    for what, count in counts.items():
        logger.warning("%s: %d %s", name, count, what)
    if not places:
        raise OptionError(key, name, f"no row can be used ({dict(counts) or 'the file has none'})")
    return Examples(rows, reader, places, max_length)


def _count(counts: Counter[str], what: str, line: str) -> None:
    counts[what] += 1
    if counts[what] <= SHOWN:
        logger.warning("%s", line)


def _list(value: Any, what: str) -> list[Any]:
    if value is None or isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise ValueError(f"its {what} is {type(value).__name__}, not a list")
    return list(value)


def _message(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
        raise ValueError("a message has no role")
    if not isinstance(value.get("content"), str):
        raise ValueError(f"a message of the role {value['role']!r} has no text as its content")
    return {"role": value["role"], "content": value["content"]}


def _grid(row: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = row.get("height"), row.get("width")
    return None if height is None or width is None else (int(height), int(width))
