"""Where a module comes from: the installed distribution that it belongs to, and a digest of its source."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

from dst.common.entry_points import UNREADABLE, is_named


def source_digest(module: ModuleType) -> str:
    """sha256 over the module's file and, if it is in a package, all .py files of the outermost package.

    A package without __init__.py does not count. Paths below the package are part of the digest.
    """
    own = Path(str(module.__file__))
    base, files = own.parent, {own}
    for package in _outer_names(module.__name__):
        if file := getattr(sys.modules.get(package), "__file__", None):
            if Path(file).name.startswith("__init__."):
                base = Path(file).parent
                files |= set(base.rglob("*.py"))
            break
    digest = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def owner(module: ModuleType) -> metadata.Distribution | None:
    """The installed distribution that has the module's file, or whose source folder has it (an editable install)."""
    file, top = Path(str(module.__file__)).resolve(), module.__name__.partition(".")[0]
    for distribution in metadata.distributions():
        with contextlib.suppress(*UNREADABLE):  # then it is not known what the distribution has
            if _has(distribution, file, top) and is_named(distribution):
                return distribution
    return None


def _has(distribution: metadata.Distribution, file: Path, top: str) -> bool:
    """Whether a file of the top-level package `top` is the distribution's."""
    if top not in (distribution.read_text("top_level.txt") or top).split():
        return False
    source = _editable_source(distribution)
    if source is not None and file.is_relative_to(source):
        return True
    base = Path(str(distribution.locate_file(""))).resolve()
    if not file.is_relative_to(base):
        return False
    relative = file.relative_to(base).as_posix()
    return any(path.as_posix() == relative for path in distribution.files or ())


def _editable_source(distribution: metadata.Distribution) -> Path | None:
    """The folder that `pip install --editable` was given (PEP 610)."""
    text = distribution.read_text("direct_url.json")
    try:
        record = json.loads(text or "{}")
        if not record.get("dir_info", {}).get("editable"):
            return None
        return Path(unquote(urlsplit(record["url"]).path)).resolve()
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _outer_names(module: str) -> Iterator[str]:
    """a, a.b, a.b.c for a.b.c"""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])
