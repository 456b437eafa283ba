"""The documentation: the site builds, its page of settings agrees with the code, commands and links lead somewhere."""

import ast
import os
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS, CONFIGS, PACKAGE = ROOT / "docs", ROOT / "configs", ROOT / "maskgrpo_plugin"
TEXTS = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("examples/*/README.md")])
VERL = {"maskgrpo_base": "_generated_ppo_trainer.yaml", "sft_base": "sft_trainer_engine.yaml"}
LOADED = re.compile(
    r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=[\"']?(?:https?:)?//|<link\b[^>]*\bhref=\"https?://"
)
LINK = re.compile(r"(?<!`)\]\(([^)\s#]+)(?:#[\w-]*)?\)")


@pytest.fixture(scope="module")
def generate():
    """The modules of docs/generate, which import neither the package nor MkDocs."""
    sys.path.insert(0, str(DOCS / "generate"))
    yield {name: import_module(name) for name in ("source", "declared", "tables", "settings_page")}
    sys.path.remove(str(DOCS / "generate"))


@pytest.fixture(scope="module")
def page(generate):
    """The page of settings."""
    return generate["settings_page"].page()


def keys(values, path=""):
    """Full keys of a config's values, without Hydra's own."""
    for key, value in values.items():
        name = f"{path}{key}"
        if isinstance(value, dict) and value:
            yield from keys(value, f"{name}.")
        elif key not in ("_target_", "preflight") and not name.startswith(("defaults", "hydra")):
            yield name


def names_of(nav):
    """Files of MkDocs' nav."""
    for entry in nav:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from names_of(value) if isinstance(value, list) else [value]


@pytest.mark.skipif(find_spec("material") is None, reason="the extra docs is not installed")
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    pages = {path: path.read_text() for path in tmp_path.rglob("*.html")}
    assert len(pages) > 30
    assert not [path for path, html in pages.items() if LOADED.search(html)]
    assert not [path for path, html in pages.items() if re.search(r"<p>[^<]*\n- ", html)]  # a list that is none
    assert "url(http" not in "".join(path.read_text() for path in tmp_path.rglob("*.css"))


@pytest.mark.parametrize("base", VERL)
def test_every_key_of_the_plugin_is_on_the_page(base, page):
    shipped = yaml.safe_load((Path(find_spec("verl").origin).parent / "trainer" / "config" / VERL[base]).read_text())
    ours = set(keys(yaml.safe_load((CONFIGS / f"{base}.yaml").read_text()))) - set(keys(shipped))
    ours = {key.partition(".options.")[0] + (".options" if ".options." in key else "") for key in ours}
    assert len(ours) > 20
    assert not sorted(key for key in ours if f"`{key}`" not in page)


def test_every_option_of_the_run_configs_is_on_the_page(page):
    sections = ("algorithm.estimation.options.", "actor_rollout_ref.rollout.sampler.options.", "denoising.", "reward.")
    missing = []
    for path in CONFIGS.rglob("*.yaml"):
        for key in keys(yaml.safe_load(path.read_text()) or {}):
            general = re.sub(r"^reward\.image\.scorers\.\w+", "reward.image.scorers.NAME", key)
            last = general.rpartition(".")[2]
            known = f"`{general}`" in page or (".options." in key and (f"`{last}`" in page or "scorers" in key))
            if key.startswith(sections) and not known and "reward.image.scorers.NAME.options" not in general:
                missing.append(f"{path.name}: {key}")
    assert not missing


def test_fields_and_defaults_are_those_of_the_classes(generate):
    read = generate["declared"]
    places = [place[2:] for place in generate["settings_page"].SECTIONS]
    for decorator in ("register_estimator", "register_sampler"):
        places += generate["source"].registered(decorator).values()
    for module, name in places:
        found = {each.name: each for each in read.settings(module, name)}
        for field in fields(getattr(import_module(module), name)):
            if field.name not in found:  # of verl's own base class
                assert "verl." in str(getattr(import_module(module), name).__mro__), field.name
                continue
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            if default is MISSING or (isinstance(default, int | float | str | bool) and len(str(default)) < 60):
                assert found[field.name].default == (None if default is MISSING else read.shown(default))
            assert found[field.name].meaning, f"{name}.{field.name} has no line in the docstring"


def test_ranges_are_those_of_the_checks(generate):
    """Every table of the running checks, entry by entry."""
    from maskgrpo_plugin.tables import Range

    tables = generate["tables"]
    for module, name, section in (*tables.OF_RL, *tables.OF_SFT):
        rows = tables.rows(((module, name, section),))
        table = getattr(import_module(module), name)
        entries = [(section, table)] if section else table.items()
        for prefix, inner in entries:
            for key, allowed in inner.items():
                text = rows[f"{prefix}.{key}"].allowed
                if isinstance(allowed, Range):
                    assert text.startswith("whole" if allowed.whole else "numbers")
                    assert (("above" if allowed.above else "from") + f" {allowed.low:g}") in text
                    assert ("null" in text) == allowed.null
                    assert all(f"{number:g}" in text for number in allowed.also)
                else:
                    assert len(text.split(", ")) == len(allowed)


def test_names_are_those_that_are_registered(generate):
    from maskgrpo_plugin.diffusion.estimators import ESTIMATORS
    from maskgrpo_plugin.diffusion.samplers import SAMPLERS
    from maskgrpo_plugin.rewards.images import scorer_kinds
    from maskgrpo_plugin.rewards.text import tasks

    registered = generate["source"].registered
    assert set(registered("register_estimator")) <= set(ESTIMATORS)
    assert {name for name in ESTIMATORS if ESTIMATORS[name].__module__.startswith("maskgrpo")} == set(
        registered("register_estimator")
    )
    assert set(registered("register_sampler")) <= set(SAMPLERS)
    assert set(registered("register_task")) <= set(tasks())
    assert set(registered("register_scorer")) <= set(scorer_kinds())


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_configs_that_are_named_exist(path):
    text = path.read_text()
    named = re.findall(r"(?:--config-name[ =]|\bCONFIG=)[\"']?(\w+)", text)
    for name in named:
        assert (CONFIGS / f"{name}.yaml").is_file() or f"# my_configs/{name}.yaml" in text, name


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path):
    written = {DOCS / name for name in names_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])}
    for target in LINK.findall(re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)):
        if not target.startswith(("http://", "https://")):
            place = Path(os.path.normpath(path.parent / target))
            assert place.exists() or (path.is_relative_to(DOCS) and place in written), target


def test_messages_of_the_troubleshooting_page_are_the_codes_own():
    constants = [
        node.value
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    rows = re.findall(r"^\| (.+?) \| ", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    fragments = [part.strip() for message in messages for part in message.split("…")]
    fragments = [part for part in fragments if len(part) > 12]
    assert len(fragments) > 60
    assert not [part for part in fragments if not any(part in text for text in constants)]
