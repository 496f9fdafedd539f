"""Tasks for nodes that do not share the build folder: its files travel with the tasks, through Ray's object store.

Rules: a path below the build folder is sent as a relative one, and becomes a path below a folder of the worker process
that runs the task. The files and folders that a task names, and the indexes of the archives that it names, are sent to
a node once, and linked there. Whatever else the task leaves in its folder is its output: it comes back and is removed.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import xxhash

from preprocess.compiler.worker_deaths import NOTE, deaths_file
from preprocess.errors import DataError
from preprocess.images.index_cache import FOLDER as STORES
from preprocess.images.index_cache import current_files
from preprocess.images.listings import is_listed
from shards.files import partial_path, replace_file, sync_folder
from shards.storage.cache import cache_home

PIECE_BYTES = 64 << 20
"""Of a file in the object store."""


@dataclass(frozen=True, slots=True)
class CarriedFile:
    """A file of the build folder. identity: changes with the file. pieces: references of the object store.

    mtime_ns: its time, which the copy gets too: the states of images in it depend on it.
    """

    path: str
    identity: str
    mtime_ns: int
    pieces: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class CarriedTask:
    """build: names the build's folder on a node. payload: the pickled task."""

    build: str
    payload: bytes
    files: tuple[CarriedFile, ...]


@dataclass(frozen=True, slots=True)
class CarriedResult:
    """payload: the pickled result. files: (path below the build folder, content).

    JSON files come last, in the order of their times: they say that a task, and the files before them, are complete.
    """

    payload: bytes
    files: tuple[tuple[str, bytes], ...]


class Carrier:
    """The side of the build: packs tasks, and unpacks results into the build folder."""

    def __init__(self, work: Path, cache: Path, put: Callable[[bytes], Any]) -> None:
        """work: the build folder; cache: below it. put: stores bytes where nodes get them, and returns a reference."""
        self._work, self._cache = work, cache
        self._put = put
        self.name = xxhash.xxh3_64_hexdigest(os.fsencode(work))
        self._sent: dict[str, CarriedFile] = {}
        self._of_paths: dict[tuple[Path, ...], tuple[CarriedFile, ...]] = {}

    def begin(self) -> None:
        """Look at the build folder again, before the tasks of a stage: earlier ones left files there."""
        self._of_paths.clear()

    def pack(self, task: Any) -> CarriedTask:
        named: dict[Path, None] = {}
        payload = _dumps(task, self._work, named)
        paths = tuple(named)
        if paths not in self._of_paths:
            self._of_paths[paths] = tuple(self._carried(path) for path in self._needed(paths))
        marker = getattr(task, "marker", None)
        deaths = deaths_file(marker) if isinstance(marker, Path) else None
        more = (self._carried(deaths),) if deaths is not None and deaths.is_file() else ()
        return CarriedTask(self.name, payload, self._of_paths[paths] + more)

    def take_notes(self, notes: Iterable[tuple[str, bytes]]) -> None:
        """Put the notes of workers that died where `Forgives` looks for them."""
        for name, content in notes:
            path = self._work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def unpack(self, result: CarriedResult) -> Any:
        """The task's result. Its files are in the build folder when this returns; raises OSError if one cannot be."""
        for name, content in result.files:
            path = self._work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, content)
        return _loads(result.payload, self._work)

    def _needed(self, named: Sequence[Path]) -> Iterator[Path]:
        cache = self._cache
        for path in named:
            if path in (self._work, cache):
                continue
            if path.is_relative_to(self._work):
                below = sorted(path.rglob("*")) if path.is_dir() else [path]
                yield from (file for file in below if file.is_file() and not file.name.endswith(".partial"))
            elif cache in named and (cache / STORES).is_dir() and (is_listed(path) or path.is_file()):
                yield from self._indexes(path)

    def _indexes(self, path: Path) -> Iterator[Path]:
        try:
            yield from (file for file in sorted(current_files(path, self._cache)) if file.is_file())
        except DataError:  # a file that is not an archive, such as one of records
            return

    def _carried(self, path: Path) -> CarriedFile:
        status = path.stat()
        name = path.relative_to(self._work).as_posix()
        identity = xxhash.xxh3_64_hexdigest(f"{name}\0{status.st_size}\0{status.st_mtime_ns}".encode())
        known = self._sent.get(name)
        if known is None or known.identity != identity:
            with path.open("rb") as file:
                pieces = tuple(self._put(piece) for piece in iter(lambda: file.read(PIECE_BYTES), b""))
            known = self._sent[name] = CarriedFile(name, identity, status.st_mtime_ns, pieces)
        return known


def run_carried(function: Callable[[Any], Any], task: CarriedTask, get: Callable[[Any], bytes]) -> CarriedResult:
    """The side of a node. get: the bytes of a reference. Raises as the function does, and OSError for a full disk."""
    node = cache_home() / "nodes" / task.build
    own = node / f"process-{os.getpid()}"
    if own not in _STARTED:
        _remove_left(node)
        _STARTED.add(own)
    for file in task.files:
        _place(file, node, own, get)
    try:
        result = function(_loads(task.payload, own))
        outputs = sorted(_outputs(own), key=lambda path: (path.suffix == ".json", path.stat().st_mtime_ns))
        files = tuple((path.relative_to(own).as_posix(), path.read_bytes()) for path in outputs)
        return CarriedResult(_dumps(result, own, {}), files)
    finally:
        for path in list(_outputs(own)):
            path.unlink()


def left_notes(build: str) -> list[tuple[str, bytes]]:
    """What workers of this node that died had noted, as (path below the build folder, content); each once."""
    node = cache_home() / "nodes" / build
    _remove_left(node)
    notes = []
    for path in (node / "notes").rglob(f"*{NOTE}"):
        notes.append((path.relative_to(node / "notes").as_posix(), path.read_bytes()))
        path.unlink()
    return notes


def remove_carried(build: str) -> None:
    """Remove what a build left on this node."""
    shutil.rmtree(cache_home() / "nodes" / build, ignore_errors=True)


_STARTED: set[Path] = set()
"""Folders of this process"""

_LINKS: dict[Path, int] = {}
"""The links in them -> their inodes"""


def _place(file: CarriedFile, node: Path, own: Path, get: Callable[[Any], bytes]) -> None:
    """Make a link to the node's copy of the file, below the folder of this process."""
    copy, link = node / "files" / file.identity, own / file.path
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(copy)
        with partial.open("wb") as out:
            for piece in file.pieces:
                out.write(get(piece))
        os.utime(partial, ns=(file.mtime_ns, file.mtime_ns))
        os.replace(partial, copy)
        sync_folder(copy.parent)
    if not (link.exists() and link.samefile(copy)):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        os.link(copy, link)
    _LINKS[link] = link.stat().st_ino


def _outputs(own: Path) -> Iterator[Path]:
    """The files in the folder of this process that are not links to what was sent."""
    for path in own.rglob("*"):
        if path.is_file() and _LINKS.get(path) != path.stat().st_ino:
            yield path


def _remove_left(node: Path) -> None:
    """Remove folders of processes that are gone; their notes are kept."""
    for path in node.glob("process-*"):
        try:
            os.kill(int(path.name.removeprefix("process-")), 0)
        except ProcessLookupError:
            for note in path.rglob(f"*{NOTE}"):
                kept = node / "notes" / note.relative_to(path)
                kept.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    os.replace(note, kept)
            shutil.rmtree(path, ignore_errors=True)
        except (OSError, ValueError):
            continue  # a process of somebody else, or not ours


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, root: Path, named: dict[Path, None]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._root, self._named = root, named

    def persistent_id(self, value: Any) -> str | None:
        if not isinstance(value, Path):
            return None
        self._named[value] = None
        return str(value.relative_to(self._root)) if value.is_relative_to(self._root) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, root: Path) -> None:
        super().__init__(file)
        self._root = root

    def persistent_load(self, name: str) -> PurePath:
        return self._root / name


def _dumps(value: Any, root: Path, named: dict[Path, None]) -> bytes:
    out = io.BytesIO()
    _Pickler(out, root, named).dump(value)
    return out.getvalue()


def _loads(payload: bytes, root: Path) -> Any:
    return _Unpickler(io.BytesIO(payload), root).load()
