"""Settings, who judges a test, and what travels between the processes of a sandbox."""

import json

import pytest
from sandbox_programs import SIMPLE

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.sandbox import SandboxConfig, Status, run_tests
from maskgrpo_plugin.sandbox.inside.codec import CodecError, decode, encode, from_frame, to_frame
from maskgrpo_plugin.sandbox.judging import judge, plan


class TestConfig:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"provider": "docker"}, r"^provider='docker'.*local, e2b, sandbox_fusion"),
            ({"isolation": "chroot"}, r"^isolation="),
            ({"timeout_s": 0}, r"^timeout_s="),
            ({"total_timeout_s": 1}, r"^total_timeout_s="),
            ({"memory_mb": 1}, r"^memory_mb="),
            ({"processes": True}, r"^processes="),
            ({"provider": "sandbox_fusion"}, r"^url=''.*must be set"),
            ({"url": "localhost:80"}, r"^url='localhost:80'.*must start with"),
            ({"python_path": ["here"]}, r"^python_path="),
            ({"memory": 1}, r"^memory=1.*no such key; there are provider"),
        ],
    )
    def test_mistakes(self, values, message):
        with pytest.raises(OptionError, match=message):
            SandboxConfig.from_mapping(values)

    def test_tests_that_cannot_be_read(self):
        for tests in ([], "assert f(1) == 1", ["assert f("], [1]):
            with pytest.raises(ValueError, match="test"):
                run_tests("", tests)


class TestJudging:
    @pytest.mark.parametrize(
        ("test", "content"),
        [
            ("assert f(1, [2], k={'a': -1}) == (1, 2)", "f(1, [2], k={'a': -1})"),
            ("assert 2 == f(1)", "f(1)"),
            ("assert set(f(1)) == {1}", "set(f(1))"),
            ("assert Solution().f(1) is None", "Solution().f(1)"),
            ("assert f('x')", "f('x')"),
            ("assert not f('x')", "f('x')"),
        ],
    )
    def test_the_right_side_stays_here(self, test, content):
        made = plan(test)
        assert made.content == content and made.accepts is not None

    @pytest.mark.parametrize(
        "test",
        [
            "assert f(g(1)) == 2",
            "assert isclose(f(1), 2.0)",
            "assert isclose(f(1), 2.0) == True",
            "assert f(1) == x",
            "assert 1 < f(1) < 3",
            "assert f(*[1]) == 2",
            "assert f(1) == 1; assert f(2) == 2",
            "x = f(1)",
        ],
    )
    def test_anything_else_is_judged_by_a_process(self, test):
        assert plan(test).accepts is None and plan(test).content == test

    def test_a_program_cannot_say_that_it_passed(self):
        assert judge(plan(SIMPLE), {"status": "passed"}).status is Status.ERROR
        assert judge(plan(SIMPLE), {"status": "sandbox_error"}).status is Status.ERROR
        assert judge(plan(SIMPLE), {"value": {"t": "opaque", "v": True}}).status is Status.FAILED
        assert judge(plan(SIMPLE), {"value": {"t": "int", "v": "zz"}}).status is Status.FAILED
        assert judge(plan(SIMPLE), {"value": 2}).status is Status.PASSED
        assert judge(plan(SIMPLE), [1]).status is Status.SANDBOX_ERROR


class TestCodec:
    def test_round_trip(self):
        value = [1, 2**70, -1.5, "é\ud800", None, True, (1, [2]), {1: {2}, (3,): b"4"}, frozenset({5}), 1j, range(3)]
        sent = decode(json.loads(json.dumps(encode(value, lambda _: None))), lambda _: None)
        assert sent == value and [type(v) for v in sent] == [type(v) for v in value]

    def test_subclasses_become_plain(self):
        class Liar(int):
            __eq__ = lambda self, other: True  # noqa: E731
            __hash__ = int.__hash__

        assert type(decode(encode(Liar(3), bool), str)) is int
        assert decode(encode(object(), lambda _: True), str) == "True"

    def test_forged(self):
        deep: list = []
        for _ in range(500):
            deep = [deep]
        forged = [{"t": "tuple", "v": 1}, {"t": "eval", "v": []}, {"v": 1}, {"t": "dict", "v": [[1]]}, deep]
        forged += [{"t": "set", "v": [[1]]}, {"t": "fraction", "v": [1, 0]}, {"t": "decimal", "v": "x"}]
        for data in forged:
            with pytest.raises(CodecError):
                decode(data, str)
        with pytest.raises(CodecError):
            from_frame(b"\xff\xff\xff\xff", 100)
        with pytest.raises(CodecError):
            from_frame(b"\x00\x00\x00\x02[[", 100)
        assert from_frame(to_frame({"a": 1}, 100) + b"rest", 100) == ({"a": 1}, 12)
