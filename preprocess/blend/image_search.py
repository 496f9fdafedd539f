"""Where the images of a dataset are, by the names in its first records.

Rule: a folder is asked for a few names, never listed; an archive's list of members is read, never its images.
"""

from __future__ import annotations

import os.path
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from preprocess.adapters.parsing.sample_records import IMAGE_EXTENSIONS
from preprocess.adapters.parsing.splits import split_of_file
from preprocess.blend.folders import Folder
from preprocess.errors import RejectError
from preprocess.images.stores import FolderStore

_MAX_ARCHIVES = 16
_MAX_MEMBERS = 200_000
_MAX_TAR_MEMBERS = 1_000
"""A tar has no list of its members, so only its first ones are looked at"""


def find_images(
    names: Sequence[str], near: Path, folders: Sequence[Folder], split: str = ""
) -> tuple[list[Path], list[str]]:
    """The folders and archives that have the names, nearest to `near` first, and the names that none of them has.

    As few as cover all names: each is the one with most of the names that are left. split: of the records, whose images
    are in no folder that is named after another split.
    """
    left = list(dict.fromkeys(names))
    stores: list[Path] = []
    for candidates in (_folders(near, folders, split), _archives(near, folders)):
        found = {path: _names_in(path, left) for path in candidates}
        while left:
            best = max(found, key=lambda path: len(found[path] & set(left)), default=None)
            if best is None or not found[best] & set(left):
                break
            stores.append(best)
            left = [name for name in left if name not in found[best]]
    return stores, left


def elsewhere(name: str, near: Path, folders: Sequence[Folder]) -> Path | None:
    """A file with the last part of the name, which the records name by another path; None if there is none."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return next((path / last for path in _folders(near, folders) if _names_in(path, [last])), None)


def with_other_extension(name: str, near: Path, folders: Sequence[Folder]) -> Path | None:
    """The file, in a folder or an archive, whose name differs in its extension alone; None if there is none."""
    stem = os.path.splitext(name)[0]
    names = [f"{stem}.{extension}" for kind in sorted(IMAGE_EXTENSIONS) for extension in (kind, kind.upper())]
    for path in (*_folders(near, folders), *_archives(near, folders)):
        found = _names_in(path, names)
        if found:
            return path / min(found)
    return None


def other_folders(name: str, near: Path, folders: Sequence[Folder], chosen: Sequence[Path]) -> list[Path]:
    """Further folders that have the name."""
    return [path for path in _folders(near, folders) if path not in chosen and _names_in(path, [name])]


def _folders(near: Path, folders: Sequence[Folder], split: str = "") -> list[Path]:
    paths = [folder.path for folder in folders]
    if split:
        paths = [path for path in paths if split_of_file(f"{path.name}/x") in ("", split)]
    return sorted(paths, key=lambda path: _distance(near, path))


def _archives(near: Path, folders: Sequence[Folder]) -> list[Path]:
    found = (path for folder in folders for path in folder.archives)
    return sorted(found, key=lambda path: _distance(near, path.parent))[:_MAX_ARCHIVES]


def _distance(near: Path, path: Path) -> tuple[int, int]:
    """Steps from one folder to another, and those of them that lead up; the order of the walk decides among equals."""
    steps = os.path.relpath(path, near).split(os.sep)
    return (0, 0) if steps == ["."] else (len(steps), steps.count(".."))


def _names_in(path: Path, names: Iterable[str]) -> set[str]:
    if path.is_dir():
        store = FolderStore(path)
        return {name for name in names if _has(store, name)}
    members = set(_members(path))
    return {name for name in names if name in members}


def _has(store: FolderStore, name: str) -> bool:
    try:
        store.stamp(name)
    except (RejectError, OSError):
        return False
    return True


def _members(path: Path) -> Iterator[str]:
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                yield from islice(archive.namelist(), _MAX_MEMBERS)
        else:
            with tarfile.open(path) as archive:
                yield from (member.name for member in islice(archive, _MAX_TAR_MEMBERS))
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile, tarfile.TarError):
        return  # a build says what is wrong with an archive that the blend names
