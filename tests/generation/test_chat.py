"""A chat: which turns each question goes on from, and what ends it."""

import pytest

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.generation.chat import Chat


def talk(lines, answer, **options):
    """Run a chat over these lines; returns what was asked, and what was told."""
    asked, told, left = [], [], iter(lines)

    def read():
        line = next(left, None)
        if line is None:
            raise EOFError
        return line

    def ask(question):
        asked.append(question)
        return answer(question)

    Chat(ask, read=read, tell=told.append, **options).run()
    return asked, told


def contents(question):
    return [message["content"] for message in question.messages]


def echo(question):
    return question.text.upper()


def test_a_question_goes_on_from_the_turns_before_it():
    asked, _ = talk(["one", "  ", "two", "/reset", "three", "/quit", "four"], echo)
    assert [contents(question) for question in asked] == [["one"], ["one", "ONE", "two"], ["three"]]
    assert [message["role"] for message in asked[1].messages] == ["user", "assistant", "user"]
    assert [question.row for question in asked] == [0, 1, 2]


def test_the_end_of_the_input_ends_the_chat():
    assert len(talk(["one"], echo)[0]) == 1


def test_an_unknown_command_is_told_and_not_asked():
    asked, told = talk(["/rest now"], echo)
    assert asked == [] and "there is no /rest" in told[-1] and "/reset" in told[-1]


@pytest.mark.parametrize("error", [OptionError("--length", 8, "too long"), KeyboardInterrupt()])
def test_what_has_no_answer_is_left_out(error):
    def answer(question):
        if question.text == "two":
            raise error
        return echo(question)

    asked, told = talk(["one", "two", "three"], answer)
    assert contents(asked[2]) == ["one", "ONE", "three"]
    assert ("--length=8" in told[-1]) == isinstance(error, OptionError) and len(told) == 2


def test_images_stand_for_themselves(tmp_path):
    asked, _ = talk(["one", "two"], lambda question: None, row=7, picture=tmp_path)
    assert [contents(question) for question in asked] == [["one"], ["two"]]
    assert [question.row for question in asked] == [7, 8] and asked[0].picture == tmp_path
