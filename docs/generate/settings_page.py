"""The page of all settings, written from the source of the package and the comments of the configs."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import declared
import tables
import yaml
from declared import Setting
from source import PACKAGE, ROOT, registered

CONFIGS = ROOT / "configs"
ROLLOUT = "actor_rollout_ref.rollout"
POLICY_LOSS = "actor_rollout_ref.actor.policy_loss"
BASE, SFT_BASE = "maskgrpo_base", "sft_base"
# the plugin's dataclasses behind sections of an RL config: title, section, module, class
SECTIONS = (
    ("Algorithm", "algorithm", f"{PACKAGE}.config", "MaskGRPOAlgoConfig"),
    ("Estimation", "algorithm.estimation", f"{PACKAGE}.config", "EstimationConfig"),
    ("Policy loss", POLICY_LOSS, f"{PACKAGE}.config", "PolicyLossSettings"),
    ("Rollout", ROLLOUT, f"{PACKAGE}.config", "DiffusionRolloutConfig"),
    ("Sampler", f"{ROLLOUT}.sampler", f"{PACKAGE}.config", "SamplerSettings"),
    ("Images", f"{ROLLOUT}.image", f"{PACKAGE}.config", "ImageSettings"),
    ("Rewards of texts", "reward", f"{PACKAGE}.rewards.text.config", "TextRewardConfig"),
    ("Rewards of images", "reward.image", f"{PACKAGE}.rewards.images.config", "ImageRewardConfig"),
    ("A scorer of images", "reward.image.scorers.NAME", f"{PACKAGE}.rewards.images.config", "ScorerConfig"),
    (
        "A remote scorer",
        "reward.image.scorers.NAME.options",
        f"{PACKAGE}.rewards.images.reward_server",
        "RemoteOptions",
    ),
    ("Sandbox", "reward.sandbox", f"{PACKAGE}.sandbox.config", "SandboxConfig"),
)
NOT_KEYS = {"TextRewardConfig": ("settings",), "ScorerConfig": ("name",)}
OR_A_WORD = ("trainer.save_freq", "trainer.test_freq")  # a number or a word, which the comment says
NOT_OF_RL = ("denoising",)  # estimators of supervised training
# what may be named, by the decorator that adds to it
NAMES = (
    ("algorithm.estimation.estimator", "register_estimator"),
    (f"{POLICY_LOSS}.loss_mode", "register_policy_loss"),
    (f"`{POLICY_LOSS}.loss_mode`, losses of scores", "register_sequence_loss"),
    (f"{ROLLOUT}.sampler.name", "register_sampler"),
    (f"{ROLLOUT}.sampler.options.parallel", "register_rule"),
    ("trainer.v1.trainer_mode", "register_trainer"),
    ("a row's `extra_info.task`", "register_task"),
    ("reward.image.scorers.NAME.kind", "register_scorer"),
)
ADVANTAGES = f"{PACKAGE}.trainer.advantages"
HEAD = """# Settings

Every key that the plugin adds to verl's config, and every key of verl's that it restricts. This page is written from
the source at each build of the site: types and defaults are those of the dataclasses, ranges those of the checks that
run on the driver, comments those of the configs. A value outside them ends the run within seconds, with one line that
names the key, the value and what is allowed.

A key is given on the command line (`algorithm.estimation.mu=4`) or in a config of your own; verl's other keys are
[verl's](https://verl.readthedocs.io) and stay where they are.
"""


class Line(NamedTuple):
    """A line of a config: its full key, its value as written (None for a section), and its comment."""

    key: str
    value: str | None
    comment: str


def page() -> str:
    """The page as Markdown."""
    ranges = {key: row.allowed for key, row in tables.rows(tables.OF_RL).items()} | _named_choices()
    base = {line.key: line for line in lines(CONFIGS / f"{BASE}.yaml")}
    parts = [HEAD, "## Runs of RL\n", _top(base)]
    shown: set[str] = set()
    for title, section, module, name in SECTIONS:
        found = [each for each in declared.settings(module, name) if each.name not in NOT_KEYS.get(name, ())]
        parts += [f"### {title}: `{section}`\n", _fields(section, found, ranges, base)]
        shown |= {f"{section}.{each.name}" for each in found}
        if section == "algorithm.estimation":
            parts.append(_options_of_estimators())
        if section == POLICY_LOSS:
            parts.append(_options_of_losses())
        if section == f"{ROLLOUT}.sampler":
            parts.append(_options_of_samplers())
    parts += [_names(), _set_by_base(base, shown), _variables()]
    parts += ["### Ranges of verl's keys\n", _ranges(tables.OF_RL, shown)]
    parts += ["### Settings that have no effect\n", _ignored(tables.IGNORED_IN_RL)]
    parts += ["## Supervised runs (SFT)\n", _sft()]
    return "\n".join(parts)


def _named_choices() -> dict[str, str]:
    """What keys may be whose checks lie elsewhere than in their section's dataclass."""
    found = declared.allowed_by(f"{PACKAGE}.trainer.checks", "check_names")
    every = {each.name: each.allowed for each in declared.settings(f"{PACKAGE}.diffusion.estimators.base", "Estimator")}
    found |= {f"algorithm.estimation.{key}": text for key, text in every.items()}
    return found | {key: "see [names](#names)" for key, _ in NAMES}


def lines(config: Path) -> list[Line]:
    """The keys of a config with their comments, beside or in the line above; Hydra's own sections are left out."""
    found, path, above = [], [], ""
    for line in config.read_text().splitlines():
        match = re.match(r"( *)([\w-]+):(?: +([^#]*?))? *(?:# (.*))?$", line)
        if not match or line.lstrip().startswith("#"):
            above = line.lstrip(" #") if line.lstrip().startswith("#") else ""
            continue
        path = [*path[: len(match[1]) // 2], match[2]]
        if path[0] not in ("defaults", "hydra") and match[2] not in ("_target_", "preflight"):
            found.append(Line(".".join(path), match[3] or None, match[4] or above))
        above = ""
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body]) + "\n"


def _code(text: str | None) -> str:
    return f"`{text}`" if text is not None else ""


def _default(setting: Setting, written: Line | None) -> str:
    value = written.value if written is not None and written.value is not None else setting.default
    return _code(value) if value is not None else "must be given"


def _fields(section: str, found: Sequence[Setting], ranges: dict[str, str], base: dict[str, Line]) -> str:
    """The table of a section; old names, which go with the next release, in a line below it."""
    current = [each for each in found if not each.meaning.startswith("old ")]
    old = [each for each in found if each.meaning.startswith("old ")]
    rows = []
    for each in current:
        key = f"{section}.{each.name}"
        allowed = ranges.get(key) or each.allowed
        rows.append((_code(key), each.type, _default(each, base.get(key)), allowed, _plain(each.meaning)))
    text = table(("key", "type", "default", "allowed", "meaning"), rows)
    if old:
        names = ", ".join(_code(f"{section}.{each.name}") for each in old)
        text += f"\nOld names, which work for one more release: {names}.\n"
    return text


def _plain(meaning: str) -> str:
    """A docstring's line for this page: Python's None is null here, and other classes are their sections."""
    meaning = re.sub(r"\bNone\b", "null", meaning)
    for _, section, _, name in SECTIONS:
        meaning = meaning.replace(f"see `{name}`", f"see `{section}.*` below")
    return meaning


def _top(base: dict[str, Line]) -> str:
    methods = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
    rows = [
        ("`method`", "name", "", ", ".join(map(_code, methods)), "a published method whole, over any run config"),
        ("`extensions`", "list", _code(base["extensions"].value), "", "your own modules, imported by all processes"),
    ]
    return table(("key", "type", "default", "allowed", "meaning"), rows)


def _options_of_estimators() -> str:
    parts = []
    for name, (module, cls) in registered("register_estimator").items():
        if name in NOT_OF_RL:
            continue
        found = {each.name: each for each in declared.settings(module, cls)}
        mu, canvas = found.pop("mu"), found.pop("canvas")
        parts += [
            f"#### Options of the estimator `{name}`\n",
            f"{declared.head(module)} Its `mu` is {mu.default} and its `canvas` {canvas.default} where none is set.\n",
            _options("algorithm.estimation.options", found.values()),
        ]
    return "\n".join(parts)


def _options_of_losses() -> str:
    parts = []
    for name, (module, cls) in registered("register_sequence_loss").items():
        parts += [
            f"#### Options of the loss `{name}`\n",
            f"{declared.head(module)}\n",
            _options(f"{POLICY_LOSS}.options", declared.settings(module, cls)),
        ]
    return "\n".join(parts)


def _options_of_samplers() -> str:
    parts = []
    for name, (module, cls) in registered("register_sampler").items():
        found = [each for each in declared.settings(module, cls) if not each.by_run]
        parts += [
            f"#### Options of the sampler `{name}`\n",
            f"{declared.head(module)}\n",
            _options(f"{ROLLOUT}.sampler.options", found),
        ]
    return "\n".join(parts)


def _options(section: str, found: Iterable[Setting]) -> str:
    rows = [(_code(each.name), each.type, _default(each, None), each.allowed, _plain(each.meaning)) for each in found]
    return f"Keys `{section}.<option>`:\n\n" + table(("option", "type", "default", "allowed", "meaning"), rows)


def _names() -> str:
    """What is registered under a name, for the keys that name something."""
    parts = ["### Names\n", "What the package registers; modules of your own add to each of them.\n"]
    for key, decorator in NAMES:
        entries = registered(decorator)
        homes = [module for module, _ in entries.values()]
        rows = [
            (_code(name), declared.head(module) if homes.count(module) == 1 else declared.first_sentence(module, found))
            for name, (module, found) in entries.items()
            if name not in NOT_OF_RL
        ]
        parts += [f"#### {key if '`' in key else _code(key)}\n", table(("name", "what it is"), rows)]
    return "\n".join([*parts, "#### `algorithm.adv_estimator`\n", _advantages()])


def _advantages() -> str:
    meaning = declared.argument(ADVANTAGES, "group_advantages", "normalisation")
    return (
        "`maskgrpo` (`std`, or `center` where `algorithm.norm_adv_by_std_in_grpo` is false), `leave_one_out`, "
        f"`zscore`, and verl's own that need no critic. {meaning} `wd1` and `justgrpo` are `center` and `std` with the "
        "weights of these methods within a group.\n"
    )


def _set_by_base(base: dict[str, Line], shown: set[str]) -> str:
    """verl's keys that the base config sets, so that a run config need not."""
    rows = [
        (_code(line.key), _code(line.value), line.comment)
        for line in base.values()
        if line.value is not None and line.key not in shown and line.key != "extensions"
    ]
    return f"### verl's keys that `configs/{BASE}.yaml` sets\n\n" + table(("key", "value", ""), rows)


def _variables() -> str:
    """Keys of run configs that other keys refer to, such as `quickstart_dir`."""
    rows = []
    for path in sorted(CONFIGS.glob("*.yaml")):
        values = yaml.safe_load(path.read_text())
        for line in lines(path):
            if "." not in line.key and line.value and f"${{{line.key}}}" in path.read_text() and line.key in values:
                rows.append((_code(line.key), _code(path.stem), _code(line.value), line.comment))
    head = "### Variables of the shipped run configs\n\nKeys that other keys of the same config refer to.\n\n"
    return head + table(("key", "config", "value", ""), rows)


def _ranges(places: tuple[tables.Place, ...], shown: set[str]) -> str:
    found = [row for key, row in sorted(tables.rows(places).items()) if key not in shown]
    return table(("key", "allowed"), [(_code(row.key), row.allowed) for row in found])


def _ignored(places: tuple[tables.Place, ...]) -> str:
    head = "A value other than the neutral one is refused, so that no run has a setting that does nothing.\n\n"
    rows = [(_code(row.key), _code(row.allowed), row.reason) for row in tables.rows(places).values()]
    return head + table(("key", "neutral", "why"), rows)


def _kind(value: str) -> str:
    """The type of a value as written in a config, in words; empty for null, which tells none."""
    kind = type(yaml.safe_load(value)).__name__
    return {"list": "list", "dict": "section", "NoneType": ""}.get(kind, declared.WORDS.get(kind, ""))


def _sft() -> str:
    """The keys of `configs/sft_base.yaml` with their comments and ranges."""
    ranges = {key: row.allowed for key, row in tables.rows(tables.OF_SFT).items()}
    of_function = declared.allowed_by(f"{PACKAGE}.trainer.sft_checks", "check_sft")
    ranges |= {key: text for key, text in of_function.items() if key not in OR_A_WORD}
    module, cls = registered("register_estimator")["denoising"]
    for each in declared.settings(module, cls):
        ranges.setdefault(f"denoising.{each.name}", each.allowed)
    found = lines(CONFIGS / f"{SFT_BASE}.yaml")
    rows = [
        (_code(each.key), _kind(each.value), _code(each.value), ranges.get(each.key, ""), each.comment)
        for each in found
        if each.value
    ]
    shown = {each.key for each in found}
    return "\n".join(
        [
            f"Keys of `configs/{SFT_BASE}.yaml`; [Supervised training](../sft.md) says what they do.\n",
            table(("key", "type", "default", "allowed", "meaning"), rows),
            "### Ranges of verl's keys in SFT\n",
            _ranges(tables.OF_SFT, shown),
            "### Settings that have no effect in SFT\n",
            _ignored(tables.IGNORED_IN_SFT),
        ]
    )
