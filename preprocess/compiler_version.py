"""Versions that can change a byte of a shard without a change of data or configuration; part of every content key."""

from __future__ import annotations

from functools import lru_cache
from importlib import metadata

COMPILER = 7
"""Raise it with every change of this project that can alter a shard; then older finished tasks are not reused."""

_LIBRARIES = ("jinja2", "pillow", "polars", "tokenizers")


@lru_cache(maxsize=1)
def libraries() -> dict[str, str]:
    """The libraries whose version can change bytes: templates, pixels, indexes, ids."""
    return {name: metadata.version(name) for name in _LIBRARIES}
