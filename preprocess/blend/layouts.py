"""Which files below a folder match patterns, and which of an adapter's layouts is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from preprocess.adapters.base import Adapter, Layout
from preprocess.containers.remote_path import input_path, is_pattern


def find_layout(adapter: Adapter, root: Path) -> Layout | None:
    """The first of the adapter's layouts whose annotation files are below root; None if there is none."""
    enough = all if adapter.joins else any
    return next(
        (
            one
            for one in adapter.layouts
            if enough(own_annotations(adapter, root, (pattern,)) for pattern in one.annotations)
        ),
        None,
    )


def own_annotations(adapter: Adapter, root: Path, patterns: Sequence[str]) -> tuple[Path, ...]:
    """The files that patterns of the adapter match, without those that are never annotations."""
    return tuple(
        path for path in matching(root, patterns) if not any(path.match(name) for name in adapter.not_annotations)
    )


def matching(root: Path, patterns: Sequence[str]) -> tuple[Path, ...]:
    """Existing paths, in the order of the patterns, sorted within each; a config may have absolute ones, and URLs.

    Raises ValueError or LocationError for a URL that cannot be read here, OSError for one that does not answer.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        plain = input_path(root, pattern)
        if not is_pattern(plain) and plain.exists():
            found[plain] = None
            continue
        start = root if plain.is_relative_to(root) else input_path(root, plain.anchor)
        found.update(dict.fromkeys(sorted(start.glob(str(plain.relative_to(start))))))
    return tuple(found)
