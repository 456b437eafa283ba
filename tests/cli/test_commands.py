"""The command `maskgrpo`: it starts without torch, and hands arguments on unread."""

import json
import subprocess
import sys
import types

import pytest

from maskgrpo_cli.forwarding import COMMANDS, PREPARE, config_arguments, is_config
from maskgrpo_cli.main import main
from maskgrpo_cli.methods import read_methods
from maskgrpo_cli.shipped import config_folder

HEAVY = ("torch", "verl", "transformers", "ray", "hydra", "maskgrpo_plugin")


@pytest.fixture
def called(monkeypatch):
    """Puts a stand-in for every forwarded command; returns what each was called with."""
    calls = []
    for module in [command.module for command in COMMANDS.values()] + list(PREPARE.values()):

        def stand_in(arguments, module=module):
            calls.append((module, arguments, sys.argv[0]))
            return 3

        found = types.ModuleType(module)
        found.main = stand_in
        monkeypatch.setitem(sys.modules, module, found)
    monkeypatch.setattr(sys, "argv", ["maskgrpo"])
    return calls


@pytest.mark.parametrize("arguments", [["--help"], ["methods"], ["train", "--help"]])
def test_nothing_heavy_is_imported_before_it_is_needed(arguments):
    script = (
        "import json, sys\nfrom maskgrpo_cli.main import main\n"
        f"status = main({arguments!r})\n"
        f"print()\nprint(json.dumps([status, [name for name in {HEAVY!r} if name in sys.modules]]))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout.splitlines()[-1]) == [0, []]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_arguments_are_handed_on_as_they_are_and_the_status_comes_back(called, name):
    arguments = ["--option", "value", "-x", "--flag=1"]
    assert main([name, *arguments]) == 3
    assert called == [(COMMANDS[name].module, arguments, f"maskgrpo {name}")]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_is_the_commands_own_behind_the_examples(called, capsys, name):
    main([name, "--help"])
    assert called[0][1] == ["--help"]
    assert f"maskgrpo {COMMANDS[name].examples[0]}" in capsys.readouterr().out


def test_data_of_several_kinds_is_prepared_by_one_command(called):
    main(["prepare", "captions", "--input", "TARS"])
    main(["prepare", "gsm8k", "--output-dir", "data"])
    assert called[0][:2] == ("maskgrpo_plugin.data.captions", ["--input", "TARS"])
    assert called[1][:2] == ("maskgrpo_plugin.data.prepare", ["gsm8k", "--output-dir", "data"])


def test_a_config_is_a_name_or_a_file(called, tmp_path):
    assert config_arguments("llada_8b_gsm8k") == ["--config-name", "llada_8b_gsm8k"]
    file = tmp_path / "my.run.yaml"
    assert config_arguments(str(file)) == ["--config-dir", str(tmp_path), "--config-name", "my.run"]
    assert [is_config(text) for text in ("run", "a/b.yaml", "--config-name", "a=b", "+a=b", "~a")] == [True] * 2 + [
        False
    ] * 4
    main(["sft", "sft_quickstart", "optim.lr=1"])
    main(["sft", "--config-name", "sft_quickstart"])
    assert called[0][1] == called[1][1] + ["optim.lr=1"] == ["--config-name", "sft_quickstart", "optim.lr=1"]


def test_a_command_that_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setitem(COMMANDS, "report", COMMANDS["report"]._replace(module="maskgrpo_cli.no_such_module"))
    monkeypatch.setattr(sys, "argv", ["maskgrpo"])
    assert main(["report", "x"]) == 2
    assert "this installation has no maskgrpo_cli.no_such_module" in capsys.readouterr().err


def test_a_wrong_command_is_refused():
    assert main(["nope"]) == 2


def test_training_gets_the_config_first_and_hands_on_the_rest(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("maskgrpo_cli.train.train", lambda *arguments: calls.append(arguments) or 5)
    assert main(["train", "quickstart", "--config-dir", "mine", "a.b=1", "+c=2"]) == 5
    assert calls == [("quickstart", ["--config-dir", "mine", "a.b=1", "+c=2"])]
    assert main(["train", "--config-dir", "mine", "quickstart"]) == 2
    assert "its name comes first" in capsys.readouterr().err


def test_the_methods_are_told_by_name_parts_and_paper(capsys):
    methods = {method.name: method for method in read_methods(config_folder() / "method")}
    assert sorted(methods) == sorted(file.stem for file in (config_folder() / "method").glob("*.yaml"))
    tracerl = methods["tracerl"]
    assert (tracerl.estimator, tracerl.loss, tracerl.paper) == ("trajectory", "tracerl", "2509.06949")
    assert tracerl.description.startswith("TraceRL. Slices of 8 distinct reveal steps") and "arXiv" not in str(
        tracerl.description
    )
    assert methods["maskgrpo_digits"].estimator == "maskgrpo"  # of the method that it builds on
    assert methods["maskgrpo_image"].paper == "2510.02880"
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in methods) and "\x1b" not in shown
