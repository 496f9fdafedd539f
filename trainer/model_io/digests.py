"""Digests of the files of a checkpoint or an export, and of the JSON record that lists them.

    {"files": {"model.safetensors": {"size": 8, "xxh3_128": "..."}}, ..., "digest": "..."}

The rule: `digest` is the xxh3_128 of the record's bytes with the digest itself replaced by zeros, so no byte of the
folder can change unnoticed. A folder of an earlier release has no digests, which is a note and not an error.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import xxhash

from shards.typed_json import OPTIONAL, Count
from trainer.errors import TrainError

_DIGEST, _ZEROS = "digest", "0" * 32
_XXH3 = "xxh3_128"
_CHUNK_BYTES = 4 << 20
_MAX_DEPTH = 100
_READ_BY_LOADERS = (".safetensors", ".json", ".jinja", ".model", ".txt", ".bin", ".pt")
"""Endings of files that this or another program may read as part of a model"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What a record has of a file. Without xxh3_128 an earlier release wrote it."""

    size: Count
    xxh3_128: Annotated[str | None, OPTIONAL] = None
    sha256: Annotated[str | None, OPTIONAL] = None


class Digester:
    """The size and digests of bytes that are written or read one after the other."""

    def __init__(self, *, sha256: bool = False) -> None:
        self._size, self._xxh3 = 0, xxhash.xxh3_128()
        self._sha256 = hashlib.sha256() if sha256 else None

    def update(self, data: bytes | memoryview) -> None:
        self._size += len(data)
        self._xxh3.update(data)
        if self._sha256 is not None:
            self._sha256.update(data)

    def facts(self) -> FileFacts:
        sha256 = None if self._sha256 is None else self._sha256.hexdigest()
        return FileFacts(size=self._size, xxh3_128=self._xxh3.hexdigest(), sha256=sha256)


def file_facts(path: Path, *, sha256: bool = False) -> FileFacts:
    """Size and digests of a file, read piece by piece."""
    digester = Digester(sha256=sha256)
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while size := file.readinto(buffer):
            digester.update(buffer[:size])
    return digester.facts()


class CheckedFiles:
    """The files of a folder with what its record says of them; each is checked once, before it is used.

    A whole file is read right before its content is, so that the content comes from the memory of the file system.
    """

    def __init__(self, folder: Path, files: Mapping[str, FileFacts], *, has_digests: bool, next_step: str) -> None:
        """files: by name. has_digests: False for a folder of an earlier release. next_step: how errors end."""
        self.folder, self.has_digests, self._files, self._next_step = folder, has_digests, files, next_step
        self._checked: set[str] = set()
        self._coming: deque[str] = deque()
        self._begun: dict[str, Future[str | None]] = {}
        self._thread: ThreadPoolExecutor | None = None

    def check(self, name: str) -> None:
        """Raises TrainError if the file is not the one that was written."""
        if name in self._checked:
            return
        begun = self._begun.pop(name, None)
        if problem := self.problem(name) if begun is None else begun.result():
            raise TrainError(problem)
        self._checked.add(name)
        self._begin_next()

    def check_ahead(self, names: Iterable[str]) -> None:
        """Read the first of these files in a thread now, and the next one while the one before it is used.

        Hashing releases Python's lock. One file at a time, so that an error elsewhere waits for no more than that.
        """
        self._coming.extend(names)
        self._thread = ThreadPoolExecutor(1, "digests")
        self._begin_next()

    def _begin_next(self) -> None:
        while self._thread is not None and self._coming and not self._begun:
            name = self._coming.popleft()
            if name not in self._checked:
                self._begun[name] = self._thread.submit(self.problem, name)

    def assume_checked(self, names: Iterable[str]) -> None:
        """For files that another rank has checked."""
        self._checked.update(names)

    def check_size(self, name: str) -> None:
        """Raises TrainError if the file is missing, or is longer or shorter than what was written."""
        if problem := self._problem_of_size(name):
            raise TrainError(problem)

    def check_foreign(self, known: Collection[str]) -> None:
        """Raises TrainError for a file that a loader may read and that is not `known`."""
        for problem in self.foreign(known):
            raise TrainError(problem)

    def problem(self, name: str) -> str | None:
        """What is wrong with a file, in a line; all of it is read."""
        path, expected = self.folder / name, self._files.get(name)
        if expected is None:
            return self._foreign(name) if self.has_digests else None
        if problem := self._problem_of_size(name):
            return problem
        if expected.xxh3_128 is None and expected.sha256 is None:
            return None
        kind = "sha256" if expected.xxh3_128 is None else _XXH3
        try:
            actual = file_facts(path, sha256=kind == "sha256")
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror or error}); {self._next_step}"
        got, written = getattr(actual, kind), getattr(expected, kind)
        if got == written:
            return None
        return f"{path}: is damaged or edited: its {kind} is {got}, expected {written}; {self._next_step}"

    def foreign(self, known: Collection[str]) -> Iterator[str]:
        """A line for each file that a loader may read and that is not `known`."""
        if self.has_digests:
            for path in sorted(self.folder.iterdir()):
                if path.name not in known and not path.name.startswith(".") and path.name.endswith(_READ_BY_LOADERS):
                    yield self._foreign(path.name)

    def _foreign(self, name: str) -> str:
        return f"{self.folder / name}: was not written with this folder, whose record does not list it; remove the file"

    def _problem_of_size(self, name: str) -> str | None:
        path = self.folder / name
        if not path.is_file():
            return f"{path}: is missing; {self._next_step}"
        size, expected = path.stat().st_size, self._files[name].size
        if size == expected:
            return None
        return f"{path}: has {size} bytes, expected {expected}; it is truncated or edited: {self._next_step}"


def sealed(record: Mapping[str, Any], *, indent: int) -> bytes:
    """The JSON of a record, with its digest as the last key."""
    content = {**{key: value for key, value in record.items() if key != _DIGEST}, _DIGEST: _ZEROS}
    data = (json.dumps(content, indent=indent, ensure_ascii=False) + "\n").encode()
    return _with_digest(data, _ZEROS, xxhash.xxh3_128_hexdigest(data))


def read_sealed(path: Path) -> dict[str, Any]:
    """The record of a file that `sealed` made, or that an earlier release wrote without digests.

    Raises OSError; ValueError if the file is not a JSON object, or not the one that was written.
    """
    data = path.read_bytes()
    try:
        content = json.loads(data)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels") from None
    if not isinstance(content, dict):
        raise ValueError(f"it is a {type(content).__name__}, expected an object")
    _check_depth(content)
    if _DIGEST in content:
        digest = str(content.pop(_DIGEST))
        actual = xxhash.xxh3_128_hexdigest(_with_digest(data, digest, _ZEROS))
        if digest != actual:
            raise ValueError(f"it is damaged or edited: its {_XXH3} is {actual}, expected {digest[:32]}")
    elif f'"{_XXH3}"'.encode() in data:
        raise ValueError("it is damaged or edited: its own digest is missing")
    return content


def _with_digest(data: bytes, before: str, after: str) -> bytes:
    """The bytes of a record with another digest."""
    head, _, tail = data.rpartition(before.encode() or b'""')
    return head + after.encode() + tail


def _check_depth(content: object) -> None:
    level = [content]
    for _ in range(_MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels")


def _children(node: object) -> Iterable[object]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()
