"""Folders of samples: files of one folder with the same name up to the extension, such as an image and its text.

    0001.jpg  0001.txt      sub/0002.png  sub/0002.txt

Rules: files come in the order of their folders, and in each of them in that of their names, whatever the file system
does. Hidden files are left out. Memory holds the names of one folder, about 75 bytes for each of its files.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import xxhash

from preprocess.containers.remote_path import is_remote
from preprocess.containers.remote_requests import entries_in, read_beginning
from preprocess.errors import DataError

TEXTS = frozenset(("txt", "json"))
"""Extensions of the files that are read for a record"""

_GONE = (errno.ENOENT, errno.ELOOP, errno.ENXIO)  # a link to nothing, a loop of links, a socket
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # O_NONBLOCK: opening a pipe must not wait for a writer


Stamp = tuple[int, int]
"""Size in bytes, and mtime in ns or a mark that changes with the file"""


class SampleFiles(NamedTuple):
    """folder: its path below the root, with a slash at its end, or "". extensions: of the files, sorted."""

    folder: str
    stem: str
    extensions: tuple[str, ...]

    def name(self, extension: str) -> str:
        """The path of a file below the root."""
        return f"{self.folder}{self.stem}.{extension}" if extension else f"{self.folder}{self.stem}"


def samples_below(root: Path) -> Iterator[SampleFiles]:
    """All files below a folder, grouped by their names. Raises DataError if a folder cannot be read."""
    for folder, names, _ in _folders(root):
        for stem, group in groupby(names, lambda name: name.partition("\0")[0]):
            yield SampleFiles(folder, stem, tuple(name.partition("\0")[2] for name in group))


def read_small(root: Path, name: str, at_most: int) -> bytes:
    """The bytes of a file. Raises ValueError for one that is too large or not a file, DataError if a disk fails."""
    if is_remote(root):
        return _read_remote(f"{root}/{name}", at_most)
    path = os.path.join(root, name)
    try:
        with open(os.open(path, _READ_FLAGS), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("is a pipe or a device")
            if status.st_size > at_most:
                raise ValueError(f"has {status.st_size} bytes; at most {at_most} are read")
            return file.read(at_most)
    except OSError as error:
        if error.errno in _GONE:
            raise ValueError(f"cannot be opened ({error.strerror})") from None
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def folder_state(root: Path) -> tuple[int, int]:
    """The bytes of all texts below a folder, and a number that changes with a text or with the name of a file."""
    total, digest = 0, xxhash.xxh3_64()
    for name, is_text, listed in _files(root):
        digest.update(os.fsencode(name) + b"\0")
        if is_text:
            try:
                size, when = listed or _size_and_time(os.path.join(root, name))
            except OSError:
                continue  # reading it says what is wrong
            total += size
            digest.update(f"{size} {when}\0".encode())
    return total, digest.intdigest()


def folder_sha256(root: Path, at_most: int) -> str:
    """Of the names of all files below a folder, and of the contents of its texts up to a size."""
    digest = hashlib.sha256()
    for name, is_text, _ in _files(root):
        digest.update(os.fsencode(name) + b"\0")
        if is_text:
            try:
                digest.update(hashlib.sha256(read_small(root, name, at_most)).digest())
            except ValueError as error:
                digest.update(str(error).encode())
    return digest.hexdigest()


def _files(root: Path) -> Iterator[tuple[str, bool, Stamp | None]]:
    """The path of each file below the root, whether it is read for a record, and its stamp if a listing has it."""
    for folder, names, stamps in _folders(root):
        for name in names:
            stem, _, extension = name.partition("\0")
            path = folder + (f"{stem}.{extension}" if extension else stem)
            yield path, extension.lower() in TEXTS, stamps.get(name)


def _folders(root: Path) -> Iterator[tuple[str, list[str], dict[str, Stamp]]]:
    """(path below the root, names as "stem\\0extension", sorted, stamps) of every folder; each is visited once.

    stamps: by name, if a listing has them.
    """
    seen: set[tuple[int, int]] = set()
    left = [""]
    while left:
        folder = left.pop()
        names: list[str] = []
        below: list[str] = []
        stamps: dict[str, Stamp] = {}
        try:
            for name, is_folder, stamp in _listed(root, folder) if is_remote(root) else _scanned(root, folder, seen):
                if name.startswith("."):
                    continue
                if is_folder:
                    below.append(f"{folder}{name}/")
                    continue
                stem, _, extension = name.rpartition(".")
                names.append(f"{stem}\0{extension}" if stem else f"{name}\0")
                if stamp is not None:
                    stamps[names[-1]] = stamp
        except OSError as error:
            raise DataError(f"{os.path.join(root, folder)}: cannot be read ({error.strerror})") from None
        names.sort()
        yield folder, names, stamps
        left += sorted(below, reverse=True)


def _scanned(root: Path, folder: str, seen: set[tuple[int, int]]) -> Iterator[tuple[str, bool, None]]:
    """Name, and whether it is a folder. Raises OSError."""
    path = os.path.join(root, folder)
    status = os.stat(path)
    if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(path) as entries:
        for entry in entries:
            yield entry.name, entry.is_dir(), None


def _listed(root: Path, folder: str) -> Iterator[tuple[str, bool, Stamp | None]]:
    """The same of a folder in object storage, with stamps."""
    for name, entry in entries_in(f"{root}/{folder}".rstrip("/")).items():
        yield name, not entry.is_file, (entry.size, entry.mark) if entry.is_file else None


def _size_and_time(path: str) -> Stamp:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _read_remote(url: str, at_most: int) -> bytes:
    try:
        data = read_beginning(url, at_most + 1)
    except FileNotFoundError as error:
        raise ValueError(f"cannot be opened ({error.strerror})") from None
    except OSError as error:
        raise DataError(f"{url}: cannot be read ({error.strerror})") from None
    if len(data) > at_most:
        raise ValueError(f"has more than {at_most} bytes")
    return data
