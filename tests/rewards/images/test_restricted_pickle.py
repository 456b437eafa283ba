"""What the restricted unpickler reads, and what it refuses without running any of it."""

import collections
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maskgrpo_plugin.rewards.images.restricted_pickle import UnsafePickleError, loads

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_of_every_protocol(protocol):
    data = {
        "scores": [0.5, 1, None, True, float("inf")],
        "tuple": (1, "ä", b"\x00\xff", bytearray(b"ab")),
        "set": {1, 2},
        "nested": {"a": [{"b": ()}]},
        "big": 2**200,
    }
    assert loads(pickle.dumps(data, protocol)) == data


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">i4"),
        np.array([True, False]),
        np.array([], dtype=np.float64),
        np.arange(12, dtype=np.uint8).reshape(3, 4)[:, ::2],
        np.array([1, 2], dtype=np.float16),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_of_numbers(protocol, array):
    found = loads(pickle.dumps({"scores": array}, protocol))["scores"]
    assert found.dtype == array.dtype and found.shape == array.shape
    np.testing.assert_array_equal(found, array)
    found[...] = 0  # memory of its own


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_scalars_and_shared_parts(protocol):
    shared = [np.float32(0.25), np.int64(3)]
    found = loads(pickle.dumps([shared, shared], protocol))
    assert found == [[0.25, 3], [0.25, 3]] and found[0] is found[1]
    assert type(found[0][0]) is float


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_dicts_of_other_kinds_come_as_dicts(protocol):
    groups = collections.defaultdict(list, {"color": [1.0]})
    ordered = collections.OrderedDict(a=1, b=2)
    found = loads(pickle.dumps([groups, ordered], protocol))
    assert found == [{"color": [1.0]}, {"a": 1, "b": 2}]
    assert type(found[0]) is dict and type(found[1]) is dict


def test_text_arrays_only_where_asked():
    data = pickle.dumps({"prompts": np.array(["a cat", "a dog"])})
    assert loads(data, text_arrays=True)["prompts"].tolist() == ["a cat", "a dog"]
    with pytest.raises(UnsafePickleError, match="numbers"):
        loads(data)


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_function_is_run(protocol, tmp_path):
    victim = tmp_path / "victim"
    calls = [
        (os.system, f"touch {victim}"),
        (eval, f"open({str(victim)!r}, 'w')"),
        (exec, f"open({str(victim)!r}, 'w')"),
        (subprocess.Popen, ["touch", str(victim)]),
        (getattr, "a", "upper"),
        (open, str(victim), "w"),
        (os.mkdir, str(victim)),
        (np.fromfile, "/etc/hostname"),
        (np.load, "/etc/hostname"),
        (__import__, "os"),
        (dict, [("a", 1)]),
    ]
    for function, *args in calls:
        with pytest.raises(UnsafePickleError):
            loads(pickle.dumps({"scores": [Calls(function, *args)]}, protocol))
        assert not victim.exists()


def test_a_refused_name_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "side_effect_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnsafePickleError, match=r"side_effect_module\.run"):
        loads(b"cside_effect_module\nrun\n.")


@pytest.mark.parametrize(
    "value",
    [
        np.array([1, "a", None], dtype=object),
        np.array([{"a": 1}], dtype=object),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.array([1 + 2j]),
        np.ma.array([1.0], mask=[True]),
        Calls,
        os.system,
        range(3),
    ],
    ids=lambda value: type(value).__name__ + str(getattr(value, "dtype", "")),
)
def test_other_things_are_refused(value):
    with pytest.raises(UnsafePickleError):
        loads(pickle.dumps({"scores": value}))


def raw_array(shape, code, raw):
    """Pickle of a numpy array whose parts are as given."""

    class Fake:
        def __reduce__(self):
            dtype = Calls(np.dtype, code, False, True)
            return (np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, raw))

    return pickle.dumps(Fake())


@pytest.mark.parametrize(
    ("shape", "code", "raw"),
    [
        ((1000,), "f8", b"\x00" * 8),
        ((-1,), "f8", b"\x00" * 8),
        ((2**40, 2**40), "f8", b""),
        ((1,), "O8", b"\x00" * 8),
        ((1,), "f8", [object]),
        ((1,), "V8", b"\x00" * 8),
        ((1,), "f99", b"\x00" * 99),
        ("x", "f8", b"\x00" * 8),
    ],
)
def test_damaged_arrays_are_refused(shape, code, raw):
    with pytest.raises(UnsafePickleError):
        loads(raw_array(shape, code, raw))


def test_a_whole_array_by_hand_is_read():
    assert loads(raw_array((2,), "f8", np.array([1.0, 2.0]).tobytes())).tolist() == [1.0, 2.0]


def test_a_pickle_cannot_change_the_reader():
    # BUILD with slot state on what a name stands for: (None, {"_build": ...})
    data = b"\x80\x04cnumpy\ndtype\nN}X\x06\x00\x00\x00_buildK\x01s\x86b."
    with pytest.raises(UnsafePickleError):
        loads(data)
    assert loads(pickle.dumps(np.float64(2.0))) == 2.0


@pytest.mark.parametrize("data", [b"", b"not a pickle", b"\x80\x04", pickle.dumps([1] * 100)[:-20], b"\x80\x04Pid\n."])
def test_damaged_bytes(data):
    with pytest.raises(UnsafePickleError):
        loads(data)


def test_cycles_and_towers_are_refused_and_shared_parts_do_not_multiply():
    cycle: list = []
    cycle.append(cycle)
    with pytest.raises(UnsafePickleError, match="itself"):
        loads(pickle.dumps(cycle))
    tower: list = []
    for _ in range(200):
        tower = [tower]
    with pytest.raises(UnsafePickleError, match="deep"):
        loads(pickle.dumps(tower))
    laughs: list = [1]
    for _ in range(50):
        laughs = [laughs] * 10
    assert len(loads(pickle.dumps(laughs))) == 10


def read_apart(*arguments):
    """The lines of `hostile_pickles.py`: name to (outcome, CPU seconds)."""
    script = Path(__file__).with_name("hostile_pickles.py")
    run = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, f"ended with {run.returncode}: {run.stderr[-2000:]}"
    lines = map(json.loads, run.stdout.splitlines())
    return {name: (outcome, seconds) for name, outcome, seconds in lines}


def test_bombs_are_refused_in_little_time_and_memory():
    found = read_apart("bombs")
    assert len(found) == 13
    assert {name for name, (outcome, _) in found.items() if not outcome.startswith("refused")} == set()
    assert max(seconds for _, seconds in found.values()) < 5


def test_mutated_pickles_are_read_or_refused_in_little_time_and_memory():
    found = read_apart("mutants", "3000")
    assert len(found) == 3000
    assert sum(outcome.startswith("read") for outcome, _ in found.values()) > 100
    assert max(seconds for _, seconds in found.values()) < 5


@pytest.mark.parametrize("key", [(1,), frozenset({1}), 0.5, 2**61 - 1, -(2**64)], ids=repr)
def test_keys_and_members_whose_hash_can_be_chosen_are_refused(key):
    for protocol in PROTOCOLS:
        for value in ({key: 1}, {key}, frozenset({key})):
            with pytest.raises(UnsafePickleError, match="as a key"):
                loads(pickle.dumps(value, protocol))


def test_what_is_built_is_bounded_by_the_length_of_the_pickle():
    data = b"a" * (40 * 2**20)
    assert len(loads(pickle.dumps({"images": [data]}))["images"][0]) == len(data)
    array = np.zeros(40 * 2**20, dtype=np.uint8)
    assert loads(pickle.dumps([array, array]))[0].nbytes == array.nbytes
    with pytest.raises(UnsafePickleError, match="larger than the pickle"):
        loads(b"\x80\x04(" + b"\x8f" * 400_000 + b"l.")
