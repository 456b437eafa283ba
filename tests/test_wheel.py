"""The wheel alone: what is in it, and that Hydra finds its configs from an empty folder by their names."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import forked_python
import pytest

from maskgrpo_plugin.version import __version__

ROOT = Path(__file__).parents[1]
SOURCES = ("maskgrpo_plugin", "maskgrpo_cli", "hydra_plugins", "configs", "pyproject.toml", "setup.py", "README.md")
SHIPPED = sorted(file.stem for file in (ROOT / "configs").glob("*.yaml"))
METHODS = sorted(file.stem for file in (ROOT / "configs" / "method").glob("*.yaml"))

COMPOSE = """
import json, sys
from importlib.resources import files
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
import verl
names, methods, tests = json.loads(sys.argv[1])
sys.path.append(tests)
from yaml_files import parsed_once
OmegaConf.load = parsed_once
with initialize_config_module("verl.trainer.config", version_base=None):
    composed = {name: str(compose(name).trainer.project_name) for name in names if name != "cpu"}
    modes = {name: compose("llada_8b_gsm8k", [f"method={name}"]).algorithm.estimation.estimator for name in methods}
import maskgrpo_plugin, hydra_plugins.maskgrpo_searchpath as search
places = [str(files("maskgrpo_configs")), maskgrpo_plugin.__file__, search.__file__]
json.dump({"composed": composed, "modes": modes, "places": places, "source": search.config_source()}, sys.stdout)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel, of a copy of the sources, since a build leaves files in their folder."""
    for name in ("setuptools", "pip"):
        try:
            version(name)
        except PackageNotFoundError:
            pytest.skip(f"building needs {name} in this environment")
    copy, target = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", target, copy]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    """A folder that holds what the wheel holds."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def run(unpacked, tmp_path):
    """A function that runs Python in an empty folder, with the unpacked wheel before all else that is installed."""

    def start(*arguments, cwd=tmp_path):
        python = forked_python.command()
        environment = os.environ | {"PYTHONPATH": str(unpacked), "PYTHONWARNINGS": "ignore"}
        return subprocess.run(
            [*python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
        )

    return start


def test_the_wheel_holds_the_package_and_the_configs_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert wheel.name == f"maskgrpo_plugin-{__version__}-py3-none-any.whl"
    assert {f"maskgrpo_configs/{name}.yaml" for name in SHIPPED} <= names
    assert {f"maskgrpo_configs/method/{name}.yaml" for name in METHODS} <= names
    assert {f"maskgrpo_plugin/generation/trace.{kind}" for kind in ("html", "css", "js")} <= names
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "maskgrpo_plugin").rglob("*.py")}
    assert {"maskgrpo_plugin/py.typed", "hydra_plugins/maskgrpo_searchpath.py", *modules} <= names
    tops = {name.split("/")[0] for name in names}
    assert tops - {f"maskgrpo_plugin-{__version__}.dist-info"} == {
        "maskgrpo_plugin",
        "maskgrpo_cli",
        "maskgrpo_configs",
        "hydra_plugins",
    }
    assert "hydra_plugins/__init__.py" not in names  # other packages put modules into it too


def test_every_shipped_config_composes_from_the_wheel_in_an_empty_folder(run, unpacked):
    result = run("-c", COMPOSE, json.dumps([SHIPPED, METHODS, str(ROOT / "tests")]))
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert all(Path(place).is_relative_to(unpacked) for place in found["places"]), found["places"]
    assert found["source"] == "pkg://maskgrpo_configs"
    assert sorted(found["composed"]) == [name for name in SHIPPED if name != "cpu"]
    assert found["composed"]["sft_llada_8b_s1k"] == "maskgrpo_sft"
    assert found["modes"]["tracerl"] == "trajectory" and sorted(found["modes"]) == METHODS


def test_a_folder_of_the_user_wins_over_the_shipped_configs_and_builds_on_them(run, tmp_path):
    (tmp_path / "mine").mkdir()
    own = "defaults: [maskgrpo_base, cpu, _self_, {method: tracerl}]\ntrainer: {experiment_name: of_the_user}\n"
    (tmp_path / "mine" / "quickstart.yaml").write_text(own)
    show = ["--config-name", "quickstart", "--cfg", "job", "--package", "trainer"]
    theirs = run("-m", "verl.trainer.main_ppo", "--config-dir", "mine", *show)
    assert "experiment_name: of_the_user" in theirs.stdout and "device: cpu" in theirs.stdout, theirs.stderr[-2000:]


def test_supervised_training_finds_its_configs_too(run):
    show = ["--config-name", "sft_llada_8b_s1k", "--cfg", "job", "--package", "trainer"]
    found = run("-m", "maskgrpo_plugin.sft", *show)
    assert "experiment_name: llada_8b_s1k" in found.stdout, found.stderr[-2000:]
