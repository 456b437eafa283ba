"""Conversations to learn from, out of the forms in which they are published, as verl's `messages`."""

from collections.abc import Mapping
from typing import Any

from maskgrpo_plugin.data.records import BadRecord, as_object, first_key, shown_keys
from maskgrpo_plugin.data.templates import TaskTemplates, Template, answer_form

Message = dict[str, str]

ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
ANSWER_FORMS = ("plain", "reasoning")
THINKING = "thinking_trajectories"
FORMS = "messages, conversations, question or prompt with answer, response, attempt or solution"
TEMPLATES = TaskTemplates(
    names=("question",),
    project="{question}",
    published="Work through what follows step by step, then answer it.\nWrite your reply in this form:\n"
    + answer_form("your reasoning", "your answer")
    + "\n\n{question}",
)


def chat_messages(record: Any, answer_form: str = "plain", template: Template = TEMPLATES.default) -> list[Message]:
    """The conversation of one record.

    The first of these forms that the record has: `messages` (role: system, user or assistant; content) and ShareGPT's
    `conversations` (from: system, human or gpt; value), both as they are; or one question (`question` or `prompt`)
    with one answer (`attempt`, `answer`, `response` or `solution`). s1K's records are questions with their thinking
    in `thinking_trajectories`, a list of one text, which gpt's final `attempt` follows. Other columns, and other keys
    of a message, are not read.

    Args:
        record: an object.
        answer_form: what the answer to a question is. `plain`: the answer's text alone, without any thinking.
            `reasoning`, for s1K's records alone: `<reasoning>thinking</reasoning>`, a line break, and
            `<answer>answer</answer>`, as in d1's SFT (arXiv 2504.12216).
        template: the user's turn, with a place for the question.

    Returns:
        Messages with `role` and `content`, an assistant's among them, none of user and assistant empty.

    Raises:
        BadRecord: no form that is known, a wrong type, an unknown role, no assistant turn, or an empty turn.
    """
    record = as_object(record)
    for key, names, roles in (
        ("messages", ("role", "content"), ROLES),
        ("conversations", ("from", "value"), SHAREGPT_ROLES),
    ):
        if record.get(key) is not None:
            if answer_form != "plain" or template.text != TEMPLATES.project:
                raise BadRecord("a conversation, which has no answer form and no template", key)
            return turns(record[key], *names, roles)
    return question_and_answer(
        template.fill(question=one_text(record, "question", "prompt")), _answer(record, answer_form)
    )


def question_and_answer(question: str, answer: str) -> list[Message]:
    """A conversation of two turns."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def turns(value: Any, role_key: str, content_key: str, roles: Mapping[str, str]) -> list[Message]:
    """Messages of a list of turns.

    Args:
        value: the list, of objects.
        role_key, content_key: names of the fields that are read.
        roles: the role that each name stands for.

    Raises:
        BadRecord: see `chat_messages`.
    """
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise BadRecord("turns that are no list of objects")
    messages: list[Message] = []
    for number, turn in enumerate(value, start=1):
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in roles:
            raise BadRecord("an unknown role", f"turn {number} has {role!r}, allowed: {', '.join(roles)}")
        if roles[role] == "assistant" and not any(message["role"] == "user" for message in messages):
            raise BadRecord("an assistant turn before the user's first", f"turn {number}")
        content = checked_text(
            turn.get(content_key), f"{roles[role]} turn", f"turn {number}", may_be_empty=roles[role] == "system"
        )
        messages.append({"role": roles[role], "content": content})
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRecord("no assistant turn")
    return messages


def one_text(record: Mapping[str, Any], *names: str) -> str:
    """The text under the first of `names` that is there.

    Raises:
        BadRecord: none is, or it is empty or no text.
    """
    name = first_key(record, names)
    if name is None:
        raise BadRecord(f"nothing under {' or '.join(names)}", shown_keys(record))
    return checked_text(record[name], name)


def checked_text(value: Any, what: str, detail: str = "", *, may_be_empty: bool = False) -> str:
    """`value`, if it is a text that can be written.

    Args:
        value: anything.
        what: a name for such values, of which the reason speaks: `caption`.
        detail: where in the record it stands.
        may_be_empty: whether white space alone will do.

    Raises:
        BadRecord: it is no text, is empty and may not be, or is no Unicode (half of a surrogate pair).
    """
    if not isinstance(value, str):
        raise BadRecord(f"{what} that is no text", ": ".join(filter(None, [detail, type(value).__name__])))
    if not value.strip() and not may_be_empty:
        raise BadRecord(f"empty {what}", detail)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRecord(f"{what} that is no Unicode", detail) from None
    return value


def _answer(record: Mapping[str, Any], answer_form: str) -> str:
    answer = one_text(record, "attempt", "answer", "response", "solution")
    if answer_form == "plain":
        return answer
    thinking = record.get(THINKING)
    if thinking is None:
        raise BadRecord(f"no {THINKING} for the answer form {answer_form}")
    if not isinstance(thinking, list) or len(thinking) != 1:
        size = len(thinking) if isinstance(thinking, list) else type(thinking).__name__
        raise BadRecord(f"{THINKING} that are no list of one text", f"{size}")
    return f"<reasoning>{checked_text(thinking[0], THINKING)}</reasoning>\n<answer>{answer}</answer>"
