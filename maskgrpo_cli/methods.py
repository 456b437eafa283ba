"""The table of `maskgrpo methods`, read from the heads of configs/method/*.yaml."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PAPER = re.compile(r"arXiv (\d{4}\.\d{4,5})")
IN_BRACKETS = re.compile(r"\s*\([^()]*\b(?:arXiv|code:)[^()]*\)")
SENTENCE = re.compile(r"(?<=[.!])\s+(?=[A-Z0-9])")
SENTENCES = 2  # of a head comment that the table shows


@dataclass(frozen=True)
class Method:
    """One published method.

    Attributes:
        name: as in `method=<name>`.
        estimator, loss: names of its parts.
        paper: number on arXiv; empty where the file names none.
        description: what the file's comment says first.
    """

    name: str
    estimator: str
    loss: str
    paper: str
    description: str


def read_methods(folder: Path) -> list[Method]:
    """The methods of a folder of configs, by name.

    Args:
        folder: with a file for each method, which may build on others (`defaults`).
    """
    texts = {file.stem: file.read_text("utf-8") for file in folder.glob("*.yaml")}
    return [_method(name, texts) for name in sorted(texts)]


def _method(name: str, texts: dict[str, str]) -> Method:
    comment = head_comment(texts[name])
    paper = PAPER.search(comment)
    values = _values(name, texts)
    return Method(
        name,
        _select(values, "algorithm", "estimation", "estimator"),
        _select(values, "actor_rollout_ref", "actor", "policy_loss", "loss_mode"),
        paper[1] if paper else "",
        " ".join(SENTENCE.split(IN_BRACKETS.sub("", comment).split(" Passes per ")[0])[:SENTENCES]),
    )


def head_comment(text: str) -> str:
    """The comment at the beginning of a config as one line, without Hydra's `@package`."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.lstrip("# "))
    return " ".join(lines)


def _values(name: str, texts: dict[str, str]) -> dict[str, Any]:
    own = yaml.safe_load(texts[name]) or {}
    values: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        if isinstance(base, str) and base in texts:
            values = _merged(values, _values(base, texts))
    return _merged(values, own)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = dict(under)
    for key, value in over.items():
        old = both.get(key)
        both[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def _select(values: Any, *keys: str) -> str:
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return str(values or "")
