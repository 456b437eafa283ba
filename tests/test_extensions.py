"""A user's own modules are imported wherever verl is, named by the environment, an entry point or the config."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import forked_python
import pytest
from omegaconf import OmegaConf

from maskgrpo_plugin import extensions
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.imports import import_place

ROOT = Path(__file__).parents[1]
EXTENSION = """
from neighbour import NAME
from verl.trainer.ppo.core_algos import register_policy_loss

@register_policy_loss(NAME)
def loss(**_):
    return 0
"""
LOOK = "from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY; print(sorted(POLICY_LOSS_REGISTRY))"


@pytest.fixture
def folder(tmp_path):
    """A folder with an extension and its neighbour."""
    (tmp_path / "my_loss.py").write_text(EXTENSION)
    (tmp_path / "neighbour.py").write_text("NAME = 'loss_from_outside'\n")
    return tmp_path


def python(code, *, cwd, **environment):
    """Run code in a new process."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*forked_python.command(), "-W", "ignore", "-c", textwrap.dedent(code), forked_python.for_ray()],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A process that imports verl where the environment names a module and a file, and an installed package has an
    entry point; it prints the losses that it then finds.
    """
    folder = tmp_path_factory.mktemp("imported")
    for kind in ("module", "file", "entry_point"):
        (folder / f"{kind}_loss.py").write_text(EXTENSION.replace("(NAME)", f"(NAME + '_{kind}')"))
    (folder / "neighbour.py").write_text("NAME = 'loss_from'\n")
    info = folder / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[maskgrpo_plugin.extensions]\ntheirs = entry_point_loss\n")
    names = f" module_loss , neighbour ,{folder}/file_loss.py"
    return python(f"import verl; {LOOK}", cwd=folder, MASKGRPO_EXTENSIONS=names)


@pytest.mark.parametrize("kind", ["module", "file", "entry_point"])
def test_importing_verl_imports_what_the_environment_and_entry_points_name(imported, kind):
    assert f"'loss_from_{kind}'" in imported.stdout, imported.stderr


def test_one_that_fails_is_named_in_one_line_and_the_rest_is_there(folder):
    (folder / "faulty_one.py").write_text("raise RuntimeError('first line\\nsecond line')\n")
    result = python(f"import verl; {LOOK}", cwd=folder, MASKGRPO_EXTENSIONS="my_loss.py,faulty_one")
    cause = "'faulty_one' cannot be imported: RuntimeError: first line"
    lines = [line for line in result.stderr.splitlines() if cause in line]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    assert "loss_from_outside" in result.stdout and "maskgrpo_gmpo" in result.stdout


@pytest.mark.parametrize(
    ("name", "cause"),
    [("no_module_of_mine", "there is no module 'no_module_of_mine'"), ("nowhere.py", "there is no file")],
)
def test_what_is_not_there_is_named(name, cause, monkeypatch):
    monkeypatch.setenv(extensions.VARIABLE, name)
    with pytest.raises(extensions.ExtensionError, match=f"'{name}' cannot be imported: ValueError: {cause}"):
        extensions.load_extensions()


def test_the_config_names_them_for_this_process_and_for_the_workers(folder, monkeypatch):
    monkeypatch.setenv(extensions.VARIABLE, "")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = OmegaConf.create({"extensions": ["neighbour.py"], "ray_kwargs": {"ray_init": {"runtime_env": {"a": 1}}}})
    OmegaConf.set_struct(config, True)
    extensions.read_config(config)
    path = str(folder / "neighbour.py")
    assert sys.modules.pop("neighbour").NAME == "loss_from_outside"
    assert config.extensions == [path] and os.environ[extensions.VARIABLE] == path
    assert config.ray_kwargs.ray_init.runtime_env == {"a": 1, "env_vars": {extensions.VARIABLE: path}}


def test_a_config_without_extensions_is_left_alone(monkeypatch):
    monkeypatch.delenv(extensions.VARIABLE, raising=False)
    for section in ({}, {"extensions": []}, {"extensions": None}):
        config = OmegaConf.create(section)
        extensions.read_config(config)
        assert config == section


@pytest.mark.parametrize("value", ["my_loss", [3], ["nowhere"]])
def test_a_wrong_value_in_the_config_is_named_by_its_key(value, monkeypatch):
    monkeypatch.delenv(extensions.VARIABLE, raising=False)
    with pytest.raises(OptionError, match=r"^extensions="):
        extensions.read_config(OmegaConf.create({"extensions": value}))
    assert not os.environ.get(extensions.VARIABLE)


def test_a_file_is_imported_once_and_cannot_hide_another_module(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (folder / "json.py").write_text("loads = None\n")
    first, second = import_place(str(folder / "json.py")), import_place(str(folder / "json.py"))
    import json

    assert first is second and first.loads is None and json.loads("1") == 1
    del sys.modules[first.__name__]


@pytest.mark.slow
def test_ray_workers_import_what_the_config_names(folder):
    """As verl starts Ray: the driver checks its config, then gives ray_init to ray.init; two actors look."""
    code = """
        import sys, verl, ray
        from omegaconf import OmegaConf
        from maskgrpo_plugin import extensions
        from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

        runtime_env = {"py_executable": sys.argv[1]}
        ray_init = {"runtime_env": runtime_env}
        config = OmegaConf.create({"extensions": ["my_loss.py"], "ray_kwargs": {"ray_init": ray_init}})
        extensions.read_config(config)
        environment = OmegaConf.merge(get_ppo_ray_runtime_env(None), config.ray_kwargs.ray_init.runtime_env)
        ray.init("local", num_cpus=1, include_dashboard=False, runtime_env=OmegaConf.to_container(environment))

        @ray.remote(num_cpus=0.1)
        class Worker:
            def losses(self):
                import verl
                from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
                return sorted(POLICY_LOSS_REGISTRY)

        for worker in (Worker.remote(), Worker.options(runtime_env={"env_vars": {"A": "1"}}).remote()):
            print("found" if "loss_from_outside" in ray.get(worker.losses.remote()) else "missing")
    """
    result = python(code, cwd=folder)
    assert result.stdout.split()[-2:] == ["found", "found"], result.stdout + result.stderr
