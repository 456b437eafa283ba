"""What a test's process sends its supervisor: taken as what it may be, and nothing else, whatever was sent."""

from __future__ import annotations

import json

from .codec import MAX_DEPTH, CodecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MESSAGE_ROOM = 8192  # bytes of an outcome besides its value: a detail of 500 characters, each up to 12 bytes long
_NESTING = 3 * MAX_DEPTH + 20  # a dict takes three levels of JSON


def checked(sent: Any, limit: int) -> dict[str, Any]:
    """An outcome that can be written again within a limit and read again elsewhere.

    A frame that was short enough when it came may be longer when it is written again (`9e15` becomes
    9000000000000000.0), and one that this process could read may be nested too deeply for the next one.

    Args:
        sent: a message of a process that the program controls.
        limit: most bytes of the value.

    Returns:
        its `status`, `detail` and `value`, as far as it has them.
    """
    if not isinstance(sent, dict):
        return {"status": "error", "detail": "no outcome"}
    outcome: dict[str, Any] = {}
    for key, length in (("status", 20), ("detail", 500), ("word", 64)):
        if isinstance(sent.get(key), str):
            outcome[key] = sent[key][:length]
    if "value" in sent:
        try:
            if is_nested_deeper(sent["value"], _NESTING):
                raise CodecError("the value is nested too deeply")
            if len(json.dumps(sent["value"])) > limit:
                raise CodecError("the value is too large")
        except (CodecError, RecursionError) as error:
            return {"status": "output_limit", "detail": str(error)}
        outcome["value"] = sent["value"]
    return outcome


def is_nested_deeper(value: Any, depth: int) -> bool:
    """Whether lists and dicts from JSON lie more than `depth` deep in each other."""
    level = [value]
    for _ in range(depth + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, (list, dict)):
                inner += item if isinstance(item, list) else item.values()
        if not inner:
            return False
        level = inner
    return True
