"""Broken configs end on the driver in one line that names the key, or file and row; whole ones are not refused.

`python -m pytest tests/faults/test_broken_configs.py -k counts -s` prints how many of each section are refused.
"""

import sys
import time
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "workers")]
import ranks
from broken_rows import FILES, ROWS, good_rows, write_jsonl
from broken_settings import SECTIONS
from config_bases import Bases

SETTINGS = [(name, line) for name, lines in SECTIONS.items() for line in lines.strip().splitlines()]


@pytest.fixture(scope="session")
def bases(tiny_run):
    """The composed configs of the quickstart's folder."""
    return Bases(tiny_run)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    """Relative paths of overrides are the repository's."""
    monkeypatch.chdir(ranks.ROOT)


@pytest.fixture(scope="session")
def outcomes(bases):
    """What the driver says of each broken setting, found once: {line: (refused, said, seconds)}."""
    found = {}

    def find(line):
        if line not in found:
            started = time.monotonic()
            refused, said = bases.outcome(line)
            found[line] = (refused, said, time.monotonic() - started)
        return found[line]

    return find


def rows_file(folder, name):
    """A file of the quickstart's rows, broken as `ROWS[name]` says."""
    file = folder / "rows.jsonl"
    write_jsonl(ROWS[name][0](good_rows()), file)
    return file


@pytest.mark.parametrize("line", [line for _, line in SETTINGS])
def test_a_broken_setting_is_refused_by_its_key(outcomes, line):
    refused, said, _ = outcomes(line)
    assert refused, said


@pytest.mark.parametrize("name", list(ROWS))
def test_broken_rows_are_refused_by_file_and_row(bases, tmp_path, name):
    file = rows_file(tmp_path, name)
    error = bases.refused(f"data.train_files={file}")
    assert error is not None
    assert ROWS[name][1] in str(error) and len(str(error).splitlines()) == 1
    assert str(file) in str(error) or error.key.startswith(("data.", "actor_rollout_ref."))


@pytest.mark.parametrize("name", list(FILES))
def test_broken_files_are_refused_by_name(bases, tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    error = bases.refused(f"data.train_files={tmp_path / name}")
    assert error is not None and error.key == "data.train_files" and name in str(error)


def test_counts(outcomes, bases, tmp_path, capsys):
    counts, slowest = {}, 0.0
    for section, line in SETTINGS:
        refused, _, seconds = outcomes(line)
        tried, good = counts.get(section, (0, 0))
        counts[section], slowest = (tried + 1, good + refused), max(slowest, seconds)
    errors = [bases.refused(f"data.train_files={rows_file(tmp_path / str(n), name)}") for n, name in enumerate(ROWS)]
    counts["rows"] = (len(errors), sum(error is not None for error in errors))
    tried, good = (sum(count[n] for count in counts.values()) for n in (0, 1))
    with capsys.disabled():
        shown = ", ".join(f"{section} {good_here} of {all_here}" for section, (all_here, good_here) in counts.items())
        print(f"\nbroken configs refused: {good} of {tried} ({shown}); the slowest took {slowest:.2f} s")
    assert tried >= 250 and good >= 0.95 * tried
