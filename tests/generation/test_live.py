"""The live view: what a terminal shows of a canvas at each step, and when there is none."""

import io
import os
import re

import torch
from transformers import AutoTokenizer

from maskgrpo_plugin.generate import main
from maskgrpo_plugin.generation.completions import Completion, Job, Planner, Writer
from maskgrpo_plugin.generation.live import HIDDEN, LiveView
from maskgrpo_plugin.generation.questions import Question, user
from maskgrpo_plugin.generation.terminal import Screen
from maskgrpo_plugin.workers.rollout.requests import CanvasRequest, RowRequest

MASK, END = 4, 2  # of the quickstart's tokenizer
STYLE = re.compile(r"\x1b\[[\d;]*m")


def drawn(tiny_run, request, steps, jobs=1, columns=40):
    """What each step draws, without what goes up and clears."""
    stream = io.StringIO()
    screen = Screen(stream, lambda: os.terminal_size((columns, 20)), interval=0)
    view = LiveView(
        screen,
        [Job(Question(0, (user("1+1="),)), sample, request, 0) for sample in range(jobs)],
        tokenizer=AutoTokenizer.from_pretrained(tiny_run / "model"),
        mask_token_id=MASK,
        stop_token_ids=(END,),
    )
    shown = []
    for number, step in enumerate(steps):
        stream.seek(0)
        stream.truncate()
        view(number, torch.tensor(step), torch.zeros(1))
        shown.append(stream.getvalue().split("\x1b[J")[1])
    return shown


def digits(text):
    return [9 + int(character) for character in text]


def test_tokens_appear_where_they_are_revealed(tiny_run):
    request = RowRequest([1], [1] * 4, [1])
    steps = [
        [[1, MASK, *digits("5"), MASK, MASK]],
        [[1, *digits("45"), END, MASK]],
        [[1, *digits("45"), END, *digits("7")]],
    ]
    shown = drawn(tiny_run, request, steps)
    assert [STYLE.sub("", text) for text in shown] == [f"{HIDDEN}5{HIDDEN}{HIDDEN}\n", "45\n", "45\n"]
    new = [re.findall(r"\x1b\[1;32m(.*?)\x1b\[0m", text) for text in shown]
    assert new == [["5"], ["4"], []]  # what this step revealed stands out


def test_several_completions_are_drawn_under_each_other(tiny_run):
    request = RowRequest([1], [1] * 2, [1])
    (shown,) = drawn(tiny_run, request, [[[1, MASK, MASK], [1, *digits("12")]]], jobs=2)
    lines = STYLE.sub("", shown).splitlines()
    assert lines == ["[1, sample 1] 1+1=", HIDDEN * 2, "[1, sample 2] 1+1=", "12"]


def test_of_an_image_it_is_drawn_how_much_is_there(tiny_run):
    canvas = CanvasRequest((MASK,) * 4 + (3,), is_image=True)
    request = RowRequest([1], [1, 1, 1, 1, 0], [1], canvas)
    (shown,) = drawn(tiny_run, request, [[[1, 30, MASK, MASK, MASK, 3]]], columns=80)
    assert STYLE.sub("", shown) == f"{'█' * 8}{HIDDEN * 24} 1 of 4 image tokens\n"


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self):
        return True


def test_a_terminal_sees_masks_and_then_the_text(tiny_run, monkeypatch):
    options = ["--model", str(tiny_run / "model"), "--prompt", "1+1=", "--length", "8", "--early-stop", "false"]

    def shown(stream, *more):
        monkeypatch.setattr("sys.stdout", stream)
        assert main([*options, *more]) == 0
        return stream.getvalue()

    live, piped = shown(Terminal()), shown(io.StringIO())
    assert HIDDEN in live and live.endswith(f"\x1b[J{piped}")
    assert "\x1b" not in piped and HIDDEN not in piped
    assert shown(Terminal(), "--no-live") == piped
    assert HIDDEN not in shown(Terminal(), "--json")


def test_a_terminal_is_not_steered_by_a_text(tiny_run, monkeypatch):
    monkeypatch.setattr(Planner, "jobs", lambda self, question: [question])
    told = Completion(Job(Question(0, (user("a"),)), 0, RowRequest([1], [1], [1]), 0), [5], 1, "\x1b[2Jgone", 1)
    monkeypatch.setattr(Writer, "complete", lambda self, jobs, watch: iter([[told]]))
    for stream, expected in ((Terminal(), "\\x1b[2Jgone\n"), (io.StringIO(), "\x1b[2Jgone\n")):
        monkeypatch.setattr("sys.stdout", stream)
        assert main(["--model", str(tiny_run / "model"), "--prompt", "a", "--no-live"]) == 0
        assert stream.getvalue() == expected
