"""Prompts as texts with placeholders: the styles that come with the package, and texts of the user's own."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskgrpo_plugin.data.records import DataError

REASONING_TAG = "<reasoning>"
DEFAULT_STYLE = "project"
PUBLISHED_STYLE = "published"
STYLES = (DEFAULT_STYLE, PUBLISHED_STYLE)
TEMPLATE_STYLE = "template"  # of rows whose prompt came from a file

ANSWER_PREFIXES = {PUBLISHED_STYLE: REASONING_TAG}  # what published evaluation writes before the model goes on

_PARTS = re.compile(
    r"\\[A-Za-z]+(?:\{\w*\})+"  # a LaTeX command with its arguments
    r"|\{\{(?P<literal>[A-Za-z_]\w*)\}\}"
    r"|\{(?P<name>[A-Za-z_]\w*)\}"
)


def answer_form(reasoning: str, answer: str) -> str:
    """The published tags around what a completion is to hold.

    Args:
        reasoning, answer: descriptions of the two parts.
    """
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>"


@dataclass(frozen=True)
class Template:
    r"""The text of a prompt with a `{name}` where each part of a problem goes.

    Braces around anything but a name are text, and so are the arguments of a LaTeX command: `{1, 2}`, `\boxed{}` and
    `\frac{a}{b}` stay as they are. `{{name}}` is the text `{name}`.

    Example: `Template("Solve {question} and box it: \boxed{result}").fill(question="1+1")` is
    `Solve 1+1 and box it: \boxed{result}`.

    Args:
        text: with its placeholders.
        style: goes into the rows' `extra_info.style`; None for the rows of the default style, which carry none.
    """

    text: str
    style: str | None = None

    def placeholders(self) -> list[str]:
        """Names of the placeholders, in order."""
        return [match["name"] for match in _PARTS.finditer(self.text) if match["name"]]

    def fill(self, **parts: Any) -> str:
        """The prompt of one problem; braces in the parts are text.

        Args:
            parts: by placeholder.
        """

        def replacement(match: re.Match[str]) -> str:
            if match["literal"]:
                return f"{{{match['literal']}}}"
            return str(parts[match["name"]]) if match["name"] else match[0]

        return _PARTS.sub(replacement, self.text)

    def extra_info(self) -> dict[str, str]:
        """What a row says of its prompt's style, beside what its scorer needs."""
        return {"style": self.style} if self.style else {}


@dataclass(frozen=True)
class TaskTemplates:
    """The templates of a task.

    Args:
        names: placeholders of the task; a template has each of them, and no others.
        project: the text of the style `project`, the default.
        published: the text of the style `published`: the form of the published prompts, in other words. The instruction
            comes first, and the result stands in a box inside the published tags (published Sudoku prompts have no
            box).
    """

    names: Collection[str]
    project: str
    published: str

    @property
    def default(self) -> Template:
        """The template of the default style; its rows carry no style."""
        return Template(self.project)

    def styled(self, style: str) -> Template:
        """The template of a style, one of `STYLES`."""
        return Template(self.published, PUBLISHED_STYLE) if style == PUBLISHED_STYLE else self.default

    def read(self, path: Path) -> Template:
        """The template in a file of UTF-8 text; one line break at its end, which editors add, is dropped.

        Raises:
            DataError: the file cannot be read, lacks a placeholder, or has an unknown one; file and name are named.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"cannot read the template {path}: {reason}") from error
        template = Template(text.removesuffix("\n"), TEMPLATE_STYLE)
        found = template.placeholders()
        allowed = ", ".join(f"{{{name}}}" for name in self.names)
        for name in found:
            if name not in self.names:
                raise DataError(
                    f"template {path}: unknown placeholder {{{name}}}; the task has {allowed} "
                    f"(for the text {{{name}}} write {{{{{name}}}}})"
                )
        for name in self.names:
            if name not in found:
                raise DataError(f"template {path}: the placeholder {{{name}}} is missing; the task has {allowed}")
        return template
