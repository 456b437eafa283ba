"""The package's source as syntax trees: where names are defined, what decorators register, what expressions are worth.

Nothing of the package is imported, so that the site is built without torch or verl.
"""

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "maskgrpo_plugin"
INFINITY = float("inf")
DEFINITIONS = ast.ClassDef | ast.FunctionDef


class Unknown(Exception):
    """An expression whose value cannot be told from the source."""


@functools.cache
def module_tree(module: str) -> ast.Module:
    """The syntax tree of a module of the package, by its dotted name."""
    path = ROOT.joinpath(*module.split("."))
    package = path / "__init__.py"
    file = package if package.is_file() else path.with_suffix(".py")
    return ast.parse(file.read_text())


def modules(package: str) -> Iterator[str]:
    """Dotted names of all modules of a package, sorted."""
    folder = ROOT.joinpath(*package.split("."))
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imported(module: str) -> dict[str, tuple[str, str]]:
    """Names that a module imports from the package: name -> (module, name there)."""
    found = {}
    for node in ast.walk(module_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE):
            for alias in node.names:
                found[alias.asname or alias.name] = (node.module, alias.name)
    return found


def find(module: str, name: str) -> tuple[str, ast.AST] | None:
    """Where a name of a module is defined: the module and the class, function or assigned expression."""
    for node in module_tree(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return module, node.value
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Tuple)
            and isinstance(node.value, ast.Tuple)
        ):
            for target, value in zip(node.targets[0].elts, node.value.elts, strict=True):
                if ast.unparse(target) == name:
                    return module, value
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return (module, node.value) if node.value else None
    where = imported(module).get(name)
    return find(*where) if where else None


def definition(module: str, name: str) -> ast.ClassDef | ast.FunctionDef:
    """The class or function of that name in a module.

    Raises:
        LookupError: there is none.
    """
    found = find(module, name)
    if found is None or not isinstance(found[1], DEFINITIONS):
        raise LookupError(f"{module} has no {name}")
    return found[1]


@functools.cache
def registered(decorator: str, package: str = PACKAGE) -> dict[str, tuple[str, str]]:
    """What `@decorator("name")` registers: name -> (module, name of the class or function), sorted."""
    found = {}
    for module in modules(package):
        for node in module_tree(module).body:
            if isinstance(node, DEFINITIONS):
                for call in node.decorator_list:
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == decorator:
                        found[value_of(call.args[0], module)] = (module, node.name)
    return dict(sorted(found.items()))


def value_of(node: ast.AST, module: str, names: Mapping[str, Any] | None = None) -> Any:
    """The value of an expression of literals, names of constants and registries.

    Raises:
        Unknown: it cannot be told from the source.
    """
    inner = functools.partial(value_of, module=module, names=names)
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return _named(node.id, module, names or {})
    if isinstance(node, ast.Tuple | ast.List):
        items: list[Any] = []
        for item in node.elts:
            items += inner(item.value) if isinstance(item, ast.Starred) else [inner(item)]
        return tuple(items)
    if isinstance(node, ast.Dict):
        found: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            found |= {inner(key): value_or_none(value, module, names)} if key else inner(value)
        return found
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -inner(node.operand)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.Sub | ast.Div | ast.LShift):
        left, right = inner(node.left), inner(node.right)
        operations = {ast.Pow: left.__pow__, ast.Sub: left.__sub__, ast.Div: left.__truediv__}
        return (operations.get(type(node.op)) or left.__lshift__)(right)
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.FormattedValue) else part for part in node.values]
        return "".join(str(inner(part)) for part in parts)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("tuple", "sorted"):
        return tuple(inner(node.args[0]))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "items":
        return tuple(inner(node.func.value).items())
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "self.key":
        return inner(node.args[0])
    if isinstance(node, ast.Call) and ast.unparse(node) == "float('inf')":
        return INFINITY
    if isinstance(node, ast.Attribute) and ast.unparse(node) == "math.inf":
        return INFINITY
    raise Unknown(ast.unparse(node))


def value_or_none(node: ast.AST, module: str, names: Mapping[str, Any] | None) -> Any:
    """The value of a dict's entry; None where it is no literal, such as a function."""
    try:
        return value_of(node, module, names)
    except Unknown:
        return None


def _named(name: str, module: str, names: Mapping[str, Any]) -> Any:
    if name in names:
        return names[name]
    found = find(module, name)
    if found is None or isinstance(found[1], DEFINITIONS):
        raise Unknown(name)
    where, node = found
    decorator = _decorator_of(where, name)
    return tuple(registered(decorator)) if decorator else value_of(node, where)


def _decorator_of(module: str, registry: str) -> str | None:
    """The decorator that adds to a registry, which its module defines beside it; None where the name is no registry."""
    for node in module_tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.value) == f"{registry}.register":
            return ast.unparse(node.targets[0])
        if isinstance(node, ast.FunctionDef) and node.name.startswith("register_"):
            if re.search(rf"\b{registry}(\[|\.add\()", ast.unparse(node)):
                return node.name
    return None
