"""Rows of programming problems: pairs of input and output as APPS and LiveCodeBench have them, MBPP's set-up code."""

import base64
import json
import pickle
import zlib

import pytest

from maskgrpo_plugin import rewards
from maskgrpo_plugin.data.prepare import DATA_SETS, main
from maskgrpo_plugin.data.programs import acecode_file_row, apps_row, livecodebench_row, mbpp_row
from maskgrpo_plugin.data.records import DataError
from maskgrpo_plugin.sandbox import SandboxConfig
from maskgrpo_plugin.sandbox.local import detect_isolation

try:
    detect_isolation(SandboxConfig())
    REASON = ""
except RuntimeError as error:
    REASON = str(error)
needs_isolation = pytest.mark.skipif(bool(REASON), reason=REASON)

APPS = {"question": "Add two numbers.", "input_output": json.dumps({"inputs": ["1 2\n"], "outputs": ["3\n"]})}
APPS_CALL = {
    "question": "Add two numbers.",
    "input_output": json.dumps({"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}),
    "starter_code": "class Solution:\n    def add(self, a, b):",
}
PRIVATE = [{"input": "3 4", "output": "7", "testtype": "stdin"}]
LIVECODEBENCH = {
    "question_content": "Add two numbers.",
    "public_test_cases": json.dumps([{"input": "1 2", "output": "3", "testtype": "stdin"}]),
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(json.dumps(PRIVATE)))).decode(),
    "metadata": "{}",
    "starter_code": "",
}
LIVECODEBENCH_CALL = {
    **LIVECODEBENCH,
    "public_test_cases": json.dumps([{"input": "1\n2", "output": "3", "testtype": "functional"}]),
    "private_test_cases": json.dumps([{"input": "3\n4", "output": "7", "testtype": "functional"}]),
    "metadata": json.dumps({"func_name": "add"}),
    "starter_code": "class Solution:\n    def add(self, a: int, b: int) -> int:",
}
TREE = {
    "task_id": 367,
    "text": "Write a function that says whether a tree has one node.",
    "test_list": ["assert is_leaf(root) == False", "assert is_leaf(root.left)"],
    "test_setup_code": "root = Node(1)\r\nroot.left = Node(2)\r\n",
}
SCRIPT = "a, b = map(int, input().split())\nprint(a + b)"
METHOD = "class Solution:\n    def add(self, a, b):\n        return a + b"
NODE = (
    "class Node:\n    def __init__(self, v):\n        self.v, self.left = v, None\n"
    "def is_leaf(n): return n.left is None"
)


@needs_isolation
@pytest.mark.parametrize(
    ("convert", "record", "program", "tests"),
    [
        (apps_row, APPS, SCRIPT, 1),
        (apps_row, APPS_CALL, METHOD, 1),
        (livecodebench_row, LIVECODEBENCH, SCRIPT, 2),
        (livecodebench_row, LIVECODEBENCH_CALL, METHOD, 2),
        (acecode_file_row, {"question": "Add.", "test_cases": [{"input": "1 2", "output": "3"}]}, SCRIPT, 1),
        (mbpp_row, {**TREE, "task_id": 11}, NODE, 2),
    ],
)
def test_the_right_program_passes_and_a_wrong_one_does_not(convert, record, program, tests):
    row = convert(record, "validation", 0)
    truth, extra = row["reward_model"]["ground_truth"], row["extra_info"]
    assert extra.pop("task") == "code"
    right = rewards.score("code", f"```python\n{program}\n```", truth, **extra)
    assert (right["tests"], right["acc"]) == (tests, 1.0)
    wrong = program.replace("a + b", "a - b").replace("is None", "is not n")
    assert rewards.score("code", f"```python\n{wrong}\n```", truth, **extra)["acc"] == 0.0


def test_prompts_say_what_the_program_is_to_be():
    asked = {record["question"] + str(len(record)): apps_row(record, "train", 0) for record in (APPS, APPS_CALL)}
    script, method = (row["prompt"][0]["content"] for row in asked.values())
    assert "standard input" in script and "standard input" not in method
    assert "class Solution:\n    def add(self, a, b):" in method
    assert "standard input" in livecodebench_row(LIVECODEBENCH, "validation", 0)["prompt"][0]["content"]


def test_set_up_code_goes_before_each_test_where_it_is_more_than_imports():
    row = mbpp_row({**TREE, "task_id": 11}, "validation", 0)
    tests = json.loads(row["reward_model"]["ground_truth"])
    assert tests[0] == "root = Node(1)\nroot.left = Node(2)\n\nassert is_leaf(root) == False"
    assert row["extra_info"]["preamble"] == "" and "Node" not in row["prompt"][0]["content"]
    row = mbpp_row({**TREE, "task_id": 11, "test_setup_code": "import math"}, "validation", 0)
    assert row["extra_info"]["preamble"] == "import math"


@pytest.mark.parametrize(
    ("convert", "record", "message"),
    [
        (apps_row, {**APPS, "input_output": "{"}, "input_output is not JSON"),
        (apps_row, {**APPS, "input_output": ""}, "input_output"),
        (apps_row, {**APPS, "input_output": '{"inputs": [], "outputs": []}'}, "no tests under 'input_output'"),
        (apps_row, {**APPS, "input_output": '{"inputs": ["1"], "outputs": []}'}, "same length"),
        (apps_row, {"input_output": "{}"}, "question"),
        (livecodebench_row, {**LIVECODEBENCH, "private_test_cases": "garbage"}, "private_test_cases"),
        (livecodebench_row, {**LIVECODEBENCH, "private_test_cases": base64.b64encode(b"x").decode()}, "private"),
        (livecodebench_row, {**LIVECODEBENCH, "public_test_cases": '{"a": 1}'}, "public_test_cases"),
        (livecodebench_row, {**LIVECODEBENCH_CALL, "private_test_cases": '[{"input": "{", "output": "1"}]'}, "JSON"),
        (acecode_file_row, {"question": "Add.", "test_cases": [{"input": 1}]}, "test_cases"),
        (mbpp_row, {**TREE, "test_setup_code": "root ="}, "set-up code"),
    ],
)
def test_malformed_records_are_refused(convert, record, message):
    with pytest.raises(DataError, match=message):
        convert(record, "validation", 0)


def test_the_command_knows_them(tmp_path):
    path = tmp_path / "apps.jsonl"
    path.write_text(json.dumps(APPS) + "\n")
    assert main(["apps", "--train", str(path), "--output-dir", str(tmp_path), "--strict"]) == 0
    assert (tmp_path / "train.parquet").exists() and "livecodebench" in DATA_SETS


def test_a_packed_pickle_is_read_and_not_run():
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    packed = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    with pytest.raises(DataError, match="private_test_cases"):
        livecodebench_row({**LIVECODEBENCH, "private_test_cases": packed}, "validation", 0)
