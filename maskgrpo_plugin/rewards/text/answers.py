"""Where the answer stands in a completion: before the first stop text, in boxes, in answer tags, as JSON.

A completion can be made to keep a scorer busy, and a regular expression does not let go of the interpreter's lock. So
what is here takes time linear in the text's length, and so must each pattern of a scorer.
"""

import json
import re
from typing import Any

STOP_TEXTS = ("<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>")

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}]|[{}]")
_ANSWER_TAGS = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)


def cut_at_stop(completion: str) -> str:
    """The part of `completion` before the first stop token's text; all of it where there is none."""
    ends = [end for end in (completion.find(text) for text in STOP_TEXTS) if end >= 0]
    return completion[: min(ends)] if ends else completion


def boxed_contents(text: str) -> list[str]:
    """Contents of each closed `\\boxed{…}` or `\\fbox{…}`, braces balanced, in the order in which they open.

    Of boxes within boxes the outer ones are left out where all together would be longer than twice the text.
    """
    open_groups: list[int | None] = []
    found: list[tuple[int, int]] = []
    first = _BOX.search(text)
    for match in _BRACES.finditer(text, first.start() if first else len(text)):
        sign = match[0]
        if sign == "{":
            open_groups.append(None)
        elif sign == "}":
            start = open_groups.pop() if open_groups else None
            if start is not None:
                found.append((start, match.start()))
        elif len(sign) > 2:  # a box; an escaped brace has two signs
            open_groups.append(match.end())
    contents, left = [], 2 * len(text)
    for start, end in sorted(found, reverse=True):
        left -= end - start
        if left < 0:
            break
        contents.append(text[start:end])
    return contents[::-1]


def answer_tag_contents(text: str) -> list[str]:
    """Contents of each closed `<answer>…</answer>`, in order; an `<answer>` inside starts anew."""
    return _ANSWER_TAGS.findall(text)


def from_json(value: Any) -> Any:
    """`value`, decoded where it is a JSON string (parquet columns hold such), else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
