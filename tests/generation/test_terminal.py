"""Text in a terminal: what may be shown, where lines break, and what a terminal shows after it was redrawn."""

import io
import os
import re

import pytest

from maskgrpo_plugin.generation.terminal import Piece, Screen, visible, width, wrap

CONTROL = re.compile(r"\x1b\[(\d*)([A-Za-z])")


def shown(text, rows=40):
    """What a terminal that knows the line feed, the return and ESC[nA, ESC[J, ESC[m shows of a text; its lines."""
    lines, row, column, place = [""], 0, 0, 0
    while place < len(text):
        control = CONTROL.match(text, place)
        if control:
            number, letter = int(control[1] or 1), control[2]
            if letter == "A":
                row = max(0, row - number, len(lines) - rows)  # it does not reach what has scrolled away
            elif letter == "J":
                lines = [*lines[:row], lines[row][:column]]
            else:
                assert letter == "m"
            place = control.end()
            continue
        character = text[place]
        place += 1
        if character == "\r":
            column = 0
        elif character == "\n":
            row, column = row + 1, 0
            lines += [""] if row == len(lines) else []
        else:
            lines[row] = lines[row][:column] + character + lines[row][column + 1 :]
            column += 1
    return lines


def plain(lines):
    return ["".join(piece.text for piece in line) for line in lines]


def screen(columns=20, rows=10, **options):
    stream = io.StringIO()
    return Screen(stream, lambda: os.terminal_size((columns, rows)), **options), stream


def test_control_characters_are_written_out():
    assert visible("a\x1b[2Jb\x07\r\x9b1m\u202ec\tö\n") == "a\\x1b[2Jb\\x07\\x0d\\x9b1m\\u202ec    ö\n"


def test_wide_characters_take_two_columns_and_combining_ones_none():
    assert width("abc") == 3 and width("漢字") == 4 and width("e\u0301") == 1 and width("\U0001f9ea") == 2


@pytest.mark.parametrize("columns", [2, 3, 5, 80])
def test_lines_break_where_they_are_full(columns):
    pieces = [Piece("one 漢字 two\n\nthr"), Piece("ee", "new"), Piece("\x1b!\n")]
    lines = wrap(pieces, columns)
    assert all(width("".join(piece.text for piece in line)) <= columns for line in lines)
    assert "".join(plain(lines)) == "one 漢字 twothree\\x1b!"
    assert [piece.style for line in lines for piece in line if set(piece.text) <= {"e"} and piece.text] or columns == 80
    if columns == 80:
        assert plain(lines) == ["one 漢字 two", "", "three\\x1b!", ""]


def test_a_block_is_redrawn_in_place():
    view, stream = screen(interval=0)
    stream.write("before\n")
    for text in ("one\ntwo\nthree", "four", "five\nsix"):
        view.draw(wrap([Piece(text)], view.columns))
        assert shown(stream.getvalue()) == ["before", *text.split("\n"), ""]
    view.clear()
    stream.write("after\n")
    assert shown(stream.getvalue()) == ["before", "after", ""]


def test_of_more_lines_than_the_terminal_has_those_around_the_focus_are_drawn():
    view, stream = screen(rows=6, interval=0)
    lines = wrap([Piece("\n".join(map(str, range(20))))], view.columns)
    for focus, expected in ((0, "0123"), (10, ["7", "8", "9", "10"]), (None, ["16", "17", "18", "19"])):
        view.draw(lines, focus)
        found = shown(stream.getvalue(), rows=6)
        assert found == [*expected, "… 16 more lines", ""]


def test_drawing_is_due_again_after_the_interval():
    now = [0.0]
    view, _ = screen(interval=0.5, clock=lambda: now[0])
    assert view.is_due
    view.draw([[Piece("a")]])
    now[0] = 0.4
    assert not view.is_due
    now[0] = 0.5
    assert view.is_due
    view.draw([[Piece("b")]])
    view.clear()
    assert view.is_due
