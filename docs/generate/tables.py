"""The tables by which the driver checks verl's own keys, read from the source: ranges, choices, what has no effect."""

import ast
from collections.abc import Iterator
from typing import Any, NamedTuple

from declared import in_range, shown
from source import INFINITY, Unknown, find, module_tree, value_of

TABLES = "maskgrpo_plugin.tables"
# where each table's keys lie: (module, name of the table, section); a table of tables names its sections itself
OF_RL = (
    ("maskgrpo_plugin.data.checks", "NUMBERS", "data"),
    ("maskgrpo_plugin.data.checks", "CHOICES", "data"),
    ("maskgrpo_plugin.workers.actor_checks", "SIZES", None),
    ("maskgrpo_plugin.workers.actor_checks", "NUMBERS", "actor_rollout_ref.actor"),
    ("maskgrpo_plugin.workers.actor_checks", "CHOICES", "actor_rollout_ref.actor"),
    ("maskgrpo_plugin.workers.rollout.settings", "NUMBERS", "actor_rollout_ref.rollout"),
    ("maskgrpo_plugin.workers.rollout.settings", "CHOICES", "actor_rollout_ref.rollout"),
    ("maskgrpo_plugin.workers.checks", "WORKERS", None),
    ("maskgrpo_plugin.trainer.checks", "TRAINER", "trainer"),
    ("maskgrpo_plugin.trainer.checks", "TRAINER_CHOICES", "trainer"),
)
OF_SFT = (
    ("maskgrpo_plugin.trainer.sft_checks", "DATA", "data"),
    ("maskgrpo_plugin.trainer.sft_checks", "DATA_CHOICES", "data"),
    ("maskgrpo_plugin.trainer.sft_checks", "TRAINER", "trainer"),
    ("maskgrpo_plugin.trainer.sft_checks", "OPTIM", "optim"),
    ("maskgrpo_plugin.trainer.sft_checks", "IMAGES", "images"),
)
IGNORED_IN_RL = (
    ("maskgrpo_plugin.trainer.checks", "IGNORED_ALGORITHM", "algorithm"),
    ("maskgrpo_plugin.workers.actor_checks", "IGNORED", None),
    ("maskgrpo_plugin.models.checks", "IGNORED", "actor_rollout_ref.model"),
    ("maskgrpo_plugin.workers.rollout.settings", "IGNORED", "actor_rollout_ref.rollout"),
)
IGNORED_IN_SFT = (("maskgrpo_plugin.trainer.sft_checks", "DATA_IGNORED", "data"),)
Place = tuple[str, str, str | None]


class Row(NamedTuple):
    """A key with what it may be, or, of a setting of no effect, its neutral value and the reason."""

    key: str
    allowed: str
    reason: str = ""


def rows(places: tuple[Place, ...]) -> dict[str, Row]:
    """The rows of tables, by their full keys.

    Raises:
        LookupError: a table is not where it should be.
    """
    found = {}
    for module, name, section in places:
        place = find(module, name)
        if place is None or not isinstance(place[1], ast.Dict):
            raise LookupError(f"{module} has no table {name}")
        for key, entry in _entries(module, place[1], section):
            found[key] = _row(module, key, entry)
    return found


def _entries(module: str, table: ast.Dict, section: str | None) -> Iterator[tuple[str, ast.expr]]:
    for key, entry in zip(table.keys, table.values, strict=True):
        assert key is not None
        name = value_of(key, module)
        if section is None and isinstance(entry, ast.Dict):
            yield from _entries(module, entry, name)
        elif section is None:  # a section under the name of another table
            place = find(module, ast.unparse(entry))
            if place is None or not isinstance(place[1], ast.Dict):
                raise LookupError(f"{module}: {ast.unparse(entry)} is no table")
            yield from _entries(place[0], place[1], name)
        else:
            yield f"{section}.{name}", entry


def _row(module: str, key: str, entry: ast.expr) -> Row:
    where, call = module, entry
    while isinstance(call, ast.Name):
        place = find(where, call.id)
        if place is None or not isinstance(place[1], ast.expr):
            raise LookupError(f"{where}: {call.id} is not defined")
        where, call = place
    if isinstance(call, ast.Call) and ast.unparse(call.func) == "Range":
        return Row(key, _range(where, call))
    if isinstance(call, ast.Call) and ast.unparse(call.func) == "Ignored":
        neutral, reason = call.args
        try:
            values = value_of(neutral, where)
        except Unknown:
            values = (ast.unparse(neutral),)
        return Row(key, shown(values[0]), _text(where, reason))
    return Row(key, ", ".join(shown(choice) for choice in value_of_choices(where, call)))


def value_of_choices(module: str, node: ast.expr) -> tuple[Any, ...]:
    """Choices, of which a comprehension over names with a suffix is worked out."""
    if isinstance(node, ast.Tuple):
        items: list[Any] = []
        for item in node.elts:
            if isinstance(item, ast.Starred) and isinstance(item.value, ast.GeneratorExp):
                loop = item.value.generators[0]
                names = value_of(loop.iter, module)
                items += [value_of(item.value.elt, module, {ast.unparse(loop.target): name}) for name in names]
            elif isinstance(item, ast.Starred):
                items += value_of(item.value, module)
            else:
                items.append(value_of(item, module))
        return tuple(items)
    return value_of(node, module)


def _text(module: str, node: ast.expr) -> str:
    return str(value_of(node, module))


def _range(module: str, call: ast.Call) -> str:
    """A `Range` in words, as the refusal says it."""
    (declared,) = [node for node in module_tree(TABLES).body if isinstance(node, ast.ClassDef) and node.name == "Range"]
    fields = [field for field in declared.body if isinstance(field, ast.AnnAssign)]
    names = [ast.unparse(field.target) for field in fields]
    values = {
        name: value_of(field.value, TABLES) if isinstance(field.value, ast.Constant | ast.Tuple) else INFINITY
        for name, field in zip(names, fields, strict=True)
        if field.value is not None
    }
    values |= dict(zip(names, (value_of(each, module) for each in call.args), strict=False))
    values |= {each.arg: value_of(each.value, module) for each in call.keywords if each.arg}
    text = in_range(values["low"], values["high"], whole=values["whole"])
    if values["above"]:
        text = text.replace("from", "above", 1)
    further = [f"{number:g}" for number in values["also"]] + (["null"] if values["null"] else [])
    return text + (f", or {' or '.join(further)}" if further else "")
