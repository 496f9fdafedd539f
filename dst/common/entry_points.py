"""The entry points of a group, of all installed distributions, however damaged one of them is.

importlib.metadata.entry_points raises for all distributions if it cannot read one.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata

UNREADABLE = (AttributeError, OSError, TypeError, ValueError)
"""What importlib.metadata raises for damaged metadata"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryPoint:
    """An entry point of a group."""

    name: str
    value: str
    """The object's spelling in the metadata of its distribution"""
    distribution: metadata.Distribution

    @property
    def release(self) -> str:
        return f"{self.distribution.metadata['Name']} {self.distribution.version}"


def read_entry_points(group: str) -> tuple[tuple[EntryPoint, ...], tuple[str, ...]]:
    """A group's entry points, sorted, and a line for each distribution whose entry points cannot be read.

    Imports none of the objects. The result is kept until a distribution is installed or removed.
    """
    return _read(group, tuple(_stamps()))


def is_named(distribution: metadata.Distribution) -> bool:
    """False for what an interrupted install left. This parses the metadata, which takes a millisecond."""
    return "Name" in distribution.metadata


@lru_cache(maxsize=8)
def _read(group: str, stamps: tuple[tuple[str, int], ...]) -> tuple[tuple[EntryPoint, ...], tuple[str, ...]]:
    names, notes, entry_points = set(), [], []
    for distribution in metadata.distributions():
        try:
            has_any = any(entry.group == group for entry in distribution.entry_points)
        except UNREADABLE as error:
            where = getattr(distribution, "_path", "an installed distribution")
            notes.append(f"{where}: its entry points cannot be read: {type(error).__name__}: {error}; reinstall it")
            continue
        if has_any and is_named(distribution):
            names.add(re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower())
    for distribution in map(metadata.distribution, names):  # of several with one name, the one that Python finds
        with contextlib.suppress(*UNREADABLE):  # it has a note
            entry_points += [
                EntryPoint(name=entry.name, value=entry.value, distribution=distribution)
                for entry in distribution.entry_points
                if entry.group == group
            ]
    return tuple(sorted(entry_points, key=lambda entry: (entry.name, entry.release))), tuple(notes)


def _stamps() -> Iterator[tuple[str, int]]:
    """The folders of sys.path with their mtimes in ns, which change when a distribution is installed or removed."""
    for path in sys.path:
        try:
            yield path, os.stat(path or ".").st_mtime_ns
        except OSError:
            yield path, 0
