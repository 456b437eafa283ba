"""Rows of preferences as token ids: two answers to one prompt, of which one is the better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskgrpo_plugin.data.sft_rows import Example, RowReader

PROMPT, CHOSEN, REJECTED = "prompt", "chosen", "rejected"


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt.

    Attributes:
        chosen: the better one.
        rejected: the other.
    """

    chosen: Example
    rejected: Example

    is_image = False

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The tokens that are given."""
        return self.chosen.prompt_ids

    def __len__(self) -> int:
        """Tokens of the longer one, with the prompt."""
        return max(len(self.chosen), len(self.rejected))

    def cut(self, length: int) -> "Pair":
        """With both answers cut, so that neither has more than `length` tokens in all."""
        return Pair(self.chosen.cut(length), self.rejected.cut(length))


@dataclass(frozen=True)
class PairReader:
    """Turns rows of `chosen` and `rejected`, and mostly `prompt`, into pairs.

    Prompt and answers are texts or conversations. Without `prompt` both answers are whole conversations, which differ
    in their last turn alone. These three rows are one pair:

        {prompt: "2+2=", chosen: "4", rejected: "5"}
        {prompt: [{role: user, content: "2+2="}], chosen: [{role: assistant, content: "4"}], rejected: […]}
        {chosen: [{role: user, content: "2+2="}, {role: assistant, content: "4"}], rejected: […]}

    Attributes:
        reader: of conversations; of each the last turn of the assistant is the answer.
    """

    reader: RowReader

    def read(self, row: Mapping[str, Any]) -> list[Pair]:
        """The row's pair.

        Raises:
            ValueError: what is wrong with the row.
        """
        prompt = _messages(row.get(PROMPT), PROMPT, "user") if row.get(PROMPT) is not None else []
        chosen, rejected = (self._answer(prompt, row, side) for side in (CHOSEN, REJECTED))
        if chosen.prompt_ids != rejected.prompt_ids:
            raise ValueError(f"its {CHOSEN} and {REJECTED} do not answer the same prompt")
        if chosen.answer_ids == rejected.answer_ids:
            raise ValueError(f"its {CHOSEN} and {REJECTED} are the same answer")
        return [Pair(chosen, rejected)]

    def _answer(self, prompt: list[Any], row: Mapping[str, Any], side: str) -> Example:
        messages = [*prompt, *_messages(row.get(side), side, "assistant")]
        key = self.reader.messages_key
        try:
            last = self.reader.read({key: messages})[-1]
        except ValueError as error:
            raise ValueError(f"{side}: {error}") from None
        if messages[-1]["role"] != "assistant":
            raise ValueError(f"{side}: its last message is of the role {messages[-1]['role']!r}, not the assistant's")
        return last


def _messages(value: Any, what: str, role: str) -> list[Any]:
    """A conversation as it is, and a text as one message of a role."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if value is None or isinstance(value, Mapping) or not hasattr(value, "__iter__"):
        raise ValueError(f"its {what} is {type(value).__name__}, neither a text nor a list of messages")
    return list(value)
