"""Values that no field of a record should hold, and where to put them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything inside a document."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 10**30, 1.5, float("nan"), float("inf"), "", "   ", "\ud800", "a\ud800b", "x\n<image>",
    [], {}, [None], {"a": 1}, nested(300), "http://[", "x" * 5000, "\\n", "IMAGE#1", "test", ["\ud800"], "train",
)  # fmt: skip
