"""Remove what an interrupted pip left half-installed, so that pip does not mistake it for installed.

pip unpacks the files of a distribution, writes INSTALLER, and replaces RECORD with the final list as its last step.
So a distribution is complete if its RECORD lists its INSTALLER, and each file with a recorded size has that size.
While it replaces a version, pip keeps the old one under names that start with "~".
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

INFO = ".dist-info"


def repair(site_packages: Path) -> list[str]:
    """Remove every incomplete distribution; their names and versions."""
    for info in sorted(site_packages.glob(f"~*{INFO}")):
        remove(info)
    for path in sorted(site_packages.glob("~*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    removed = []
    while broken := incomplete(site_packages):  # again: a removed file may belong to a second distribution as well
        for info in broken:
            remove(info)
            removed.append(info.name.removesuffix(INFO))
    return removed


def incomplete(site_packages: Path) -> list[Path]:
    """The dist-info folders of incomplete distributions."""
    return [info for info in sorted(site_packages.glob(f"*{INFO}")) if not is_complete(info)]


def is_complete(info: Path) -> bool:
    record = list(read_record(info))
    if f"{info.name}/INSTALLER" not in (path for path, _ in record):
        return False
    return all(_size(info.parent / path) == size_bytes for path, size_bytes in record if size_bytes is not None)


def remove(info: Path) -> None:
    """Remove a distribution's listed files, then its dist-info folder."""
    environment = info.parent.parents[2]  # of <environment>/lib/python3.11/site-packages
    for name, _ in read_record(info):
        path = info.parent / name
        if path.parent.resolve().is_relative_to(environment.resolve()):
            path.unlink(missing_ok=True)
    shutil.rmtree(info)


def read_record(info: Path) -> Iterator[tuple[str, int | None]]:
    """Path relative to site-packages, and size, of each file in RECORD; nothing if there is no RECORD.

    Compiled files have no size: pip writes none, and replaces those that a wheel brings (multi-storage-client does).
    Format: https://packaging.python.org/specifications/recording-installed-packages
    """
    try:
        text = (info / "RECORD").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    for row in csv.reader(text.splitlines()):
        if row and row[0]:
            has_size = len(row) == 3 and row[2].isdecimal() and not row[0].endswith(".pyc")
            yield row[0], int(row[2]) if has_size else None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
