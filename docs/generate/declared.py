"""What the package declares about its settings, read from its source: fields, defaults, ranges, meanings.

A dataclass's field has its type and default from its annotation, its meaning from the section "Attributes:" of the
docstring, and its range from the checks that the class makes: calls of `check_number` and `check_choice`,
`OptionError(..., "allowed: ...")`, and for samplers the check that `option` is given.
"""

import ast
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from source import INFINITY, Unknown, definition, find, module_tree, value_of, value_or_none

WORDS = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false", "None": "null"}


@dataclass
class Setting:
    """One setting of a dataclass.

    Attributes:
        name: of the field.
        type: in words.
        default: as YAML; None where it must be given.
        allowed: range or choices in words; empty where no check tells.
        meaning: what the docstring says, in one line.
        by_run: whether a run sets it elsewhere (an `option` of a sampler).
    """

    name: str
    type: str
    default: str | None
    allowed: str
    meaning: str
    by_run: bool = False


def allowed_by(module: str, function: str) -> dict[str, str]:
    """What the checks in a function allow: full key -> words."""
    return _calls(module, definition(module, function), {})


def argument(module: str, function: str, name: str) -> str:
    """What a function's docstring says of an argument, in one line."""
    text = inspect.cleandoc(ast.get_docstring(definition(module, function)) or "").replace("\nArgs:", "\nAttributes:")
    return meanings(text)[name]


def first_sentence(module: str, name: str) -> str:
    """The first sentence of the docstring of a class or function."""
    text = " ".join((ast.get_docstring(definition(module, name)) or "").split("\n\n")[0].split())
    return text if len(text) < 200 else re.split(r"(?<=[.:]) ", text)[0]


def head(module: str) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(module_tree(module)) or "").split("\n")[0]


def meanings(docstring: str) -> dict[str, str]:
    """The section "Attributes:" of a docstring: name -> one line. `low, high: x` gives x to both."""
    found: dict[str, str] = {}
    section = re.search(r"^Attributes:\n((?:[ \t]+.*\n?|\n)*)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    names: list[str] = []
    for line in section[1].splitlines() if section else ():
        start = re.match(r" {4}(\w+(?:, \w+)*): (.*)", line)
        if start:
            names = start[1].split(", ")
            found |= dict.fromkeys(names, start[2])
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def settings(module: str, name: str) -> list[Setting]:
    """The fields of a dataclass and of its bases in the package, in the order of their declaration."""
    found: dict[str, Setting] = {}
    for where, node in reversed(_lineage(module, name)):
        texts, ranges = meanings(ast.get_docstring(node) or ""), _ranges(where, node)
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                if "ClassVar" not in ast.unparse(field.annotation):
                    found[field.target.id] = _setting(where, field, found.get(field.target.id))
        for key, setting in found.items():
            setting.meaning = texts.get(key, setting.meaning)
            setting.allowed = ranges.get(key, setting.allowed)
    return list(found.values())


def _lineage(module: str, name: str) -> list[tuple[str, ast.ClassDef]]:
    """A class and its bases that the package defines, nearest first."""
    found = find(module, name)
    if found is None or not isinstance(found[1], ast.ClassDef):
        return []
    where, node = found
    bases = [base for base in node.bases if isinstance(base, ast.Name)]
    return [(where, node), *(each for base in bases for each in _lineage(where, base.id))]


def _setting(module: str, field: ast.AnnAssign, inherited: Setting | None) -> Setting:
    name = field.target.id  # type: ignore[union-attr]
    kind = in_words(field.annotation)
    allowed, by_run, default = "", False, field.value
    if isinstance(default, ast.Call) and ast.unparse(default.func) == "option":
        allowed = _check_in_words(module, default.args[0], name)
        by_run = any(each.arg == "by_run" for each in default.keywords)
        default = default.args[1] if len(default.args) > 1 else None
    elif isinstance(default, ast.Call) and ast.unparse(default.func) == "field":
        given = {each.arg: each.value for each in default.keywords}
        default = given.get("default", ast.Dict(keys=[], values=[]))
    before = inherited or Setting("", "", None, "", "")
    return Setting(name, kind, as_yaml(default, module), allowed or before.allowed, before.meaning, by_run)


def in_words(annotation: ast.expr) -> str:
    """An annotation in words: `int | None` is "whole number or null"."""
    if isinstance(annotation, ast.BinOp):
        return f"{in_words(annotation.left)} or {in_words(annotation.right)}"
    text = ast.unparse(annotation)
    if text.startswith("tuple[") and text.endswith("Config, ...]"):
        return "section"
    for start, word in (("tuple", "list"), ("list", "list"), ("dict", "section"), ("Mapping", "section")):
        if text.startswith(start):
            return word
    return WORDS.get(text, "section")


def as_yaml(node: ast.expr | None, module: str) -> str | None:
    """A default as it is written in a config; None where there is none."""
    if node is None:
        return None
    try:
        return shown(value_of(node, module))
    except Unknown:
        return "see the class"


def shown(value: Any) -> str:
    """A value as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if value in ((), {}):
        return "[]" if value == () else "{}"
    if isinstance(value, str):
        return f'"{value}"' if not value else value if len(value) < 60 else "see the class"
    return str(value)


def in_range(low: float, high: float = INFINITY, *, whole: bool = False) -> str:
    """A range in words, as `check_number` writes it."""
    upper = "" if high == INFINITY else f" to {_number(high)}"
    return f"{'whole numbers' if whole else 'numbers'} from {_number(low)}{upper}"


def _number(value: float) -> str:
    for power in (31, 32, 63, 64):
        if value == 2**power - 1:
            return f"2^{power} − 1"
    return f"{value:g}"


def _check_in_words(module: str, check: ast.expr, name: str) -> str:
    """What `option`'s check allows."""
    if isinstance(check, ast.Name):
        if check.id == "flag":
            return "true, false"
        if check.id == "token_ids":
            return "token ids, whole numbers from 0"
        found = find(module, check.id)
        if found and isinstance(found[1], ast.FunctionDef):
            return next(iter(_calls(found[0], found[1], {"key": name}).values()), "")
        return ""
    assert isinstance(check, ast.Call)
    kind, arguments = ast.unparse(check.func), value_of(ast.Tuple(elts=check.args), module)
    if kind == "number":
        return in_range(*arguments, whole=any(each.arg == "whole" for each in check.keywords))
    if kind == "number_above":
        upper = f" to {_number(arguments[1])}" if len(arguments) > 1 else ""
        return f"numbers above {_number(arguments[0])}{upper}"
    return ", ".join(arguments) if kind == "one_of" else ""


def _ranges(module: str, node: ast.ClassDef) -> dict[str, str]:
    """What the checks in a class's `__post_init__` allow: field -> words."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__post_init__":
            return {key.rpartition(".")[2]: text for key, text in _calls(module, method, {}).items()}
    return {}


def _calls(module: str, node: ast.AST, names: Mapping[str, Any]) -> dict[str, str]:
    """What the checks below a node allow; loops over literals are followed."""
    found: dict[str, str] = {}
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Assign):
            value = value_or_none(child.value, module, names)
            names = {**names, ast.unparse(child.targets[0]): value} if value is not None else names
        if isinstance(child, ast.For):
            for bound in _iterations(module, child, names):
                for statement in child.body:
                    found = _calls(module, statement, {**names, **bound}) | found
            continue
        if isinstance(child, ast.Call):
            found = _allowed(module, child, names) | found
        found = _calls(module, child, names) | found
    return found


def _iterations(module: str, loop: ast.For, names: Mapping[str, Any]) -> list[dict[str, Any]]:
    try:
        values = value_of(loop.iter, module, names)
    except Unknown:
        return []
    targets = loop.target.elts if isinstance(loop.target, ast.Tuple) else [loop.target]
    keys = [ast.unparse(target) for target in targets]
    return [dict(zip(keys, value if len(keys) > 1 else (value,), strict=True)) for value in values]


def _allowed(module: str, call: ast.Call, names: Mapping[str, Any]) -> dict[str, str]:
    """What one call of a check allows; nothing where it is another call or depends on other settings."""
    kind = ast.unparse(call.func)
    if kind not in ("check_number", "check_choice", "OptionError"):
        return {}
    try:
        key = str(value_of(call.args[0], module, names))
        if kind == "OptionError":
            text = value_of(call.args[2], module, names)
            return {key: text.removeprefix("allowed: ")} if text.startswith("allowed: ") else {}
        arguments = [value_of(each, module, names) for each in call.args[2:]]
        if kind == "check_choice":
            return {key: ", ".join(map(str, arguments[0]))}
        return {key: in_range(*arguments, whole=any(each.arg == "whole" for each in call.keywords))}
    except Unknown:
        return {}
