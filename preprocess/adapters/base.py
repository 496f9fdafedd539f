"""The contract between adapters and the compiler.

An adapter is a function: `read(request)` walks a dataset's annotation files and yields a conversation or a reject for
every record, always in the same order. It opens no picture; images are named, and fetched later from the image store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocess.conversation import Records


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a dataset of the blend asks of its adapter.

    root: the dataset's folder. annotations: files, found and sorted. images: the image stores' paths (folders or
    archives); `Image.store` counts in them. options: the adapter's own options, checked and complete. max_images:
    limits.max_images.
    """

    root: Path
    annotations: tuple[Path, ...]
    images: tuple[Path, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    max_images: int = 8

    def source_file(self, path: Path) -> str:
        """The path as it stands in samples and reject files: below the root where it lies there."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A setting of one adapter: its default, what it may be, and when to change it."""

    default: Any
    help: str
    choices: tuple[Any, ...] = ()
    """The values it may take; empty: any value of the default's type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A row of ADAPTERS.

    annotations, images: where they lie below the root unless the blend says otherwise: glob patterns, every match is
    used, sorted within a pattern. joins: every annotation pattern must match something, since the files are joined.
    alternatives: the annotation patterns are places or kinds to choose from, so it is usual that some match nothing.
    layout, where, licence: sentences for `dsvl-prep adapters`.
    """

    read: Callable[[Request], Records]
    annotations: tuple[str, ...]
    images: tuple[str, ...]
    layout: str
    where: str
    licence: str
    joins: bool = False
    alternatives: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)
