"""What can change a byte of a shard though neither data nor configuration did; part of every content key."""

from __future__ import annotations

from functools import lru_cache
from importlib import metadata

COMPILER = 2
"""Raise it with any change of our own that can alter a shard; finished tasks of older compilers are then not reused."""

_LIBRARIES = ("jinja2", "pillow", "polars", "tokenizers")


@lru_cache(maxsize=1)
def libraries() -> dict[str, str]:
    """The libraries whose own version decides bytes: templates, pixels, indexes, ids."""
    return {name: metadata.version(name) for name in _LIBRARIES}
