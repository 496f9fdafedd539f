"""Local copies of a remote build's files, by digest, in a folder of limited size.

Rule: a file has its final name, `<sha256><suffix>`, only when it has exactly the bytes of that digest. Processes of a
machine share a folder: who wants a file that another one downloads waits for it. Locks are flocks, so they end with
their process; what a killed one leaves is removed when room is made. The least recently used files go first; a process
that has one open or mapped keeps it.

    .lock        guards the number of bytes in the folder, which it holds
    .lock-<xx>   guards the downloads of all digests that start with these two digits
    folders/     tokenizers: small, and not counted
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from shards.errors import ShardError
from shards.files import file_sha256, partial_path
from shards.storage.locks import locked

FREE_SHARE = 0.9
"""Without a limit the cache may fill this share of the space it could have: its own files and what is free."""

DOWNLOADS = 2
"""How often a file is downloaded that comes with other bytes than it should."""

_OURS = re.compile(r"(?P<whole>[0-9a-f]{64}(?:\.\w+)?)|\.(?P<partial>[0-9a-f]{64})(?:\.\w+)?\.[0-9a-f]+\.partial")
_FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_home() -> Path:
    """Where this program keeps what can be made again: $DSVL_CACHE, or ~/.cache/dsvl.

    Raises ShardError if there is no home folder either.
    """
    try:
        return Path(os.environ.get("DSVL_CACHE") or "~/.cache/dsvl").expanduser()
    except RuntimeError:
        raise ShardError("no home folder for the cache; set DSVL_CACHE to a folder that can be written") from None


class Cache:
    """A folder for copies; default `shards` in `cache_home()`. max_bytes: most bytes of copies in it.

    For a moment there may be more: files that several processes download at the same time are never removed.
    """

    def __init__(self, folder: str | Path | None = None, *, max_bytes: int | None = None) -> None:
        self.folder = (Path(folder) if folder else cache_home() / "shards").absolute()
        self.max_bytes = max_bytes

    def fetch(
        self,
        sha256: str,
        *,
        size: int,
        suffix: str,
        name: str,
        download: Callable[[], Iterable[bytes]],
        ahead_if: Callable[[], bool] | None = None,
    ) -> Path:
        """The local file with this digest, downloaded unless it is there. One that is there is known by name and size.

        name: what is downloaded, for messages. download: gives its bytes again each time; it may raise ShardError.
        ahead_if: for who does not need it yet: it is left to another one that is downloading it, and not downloaded if
        this says so after all that had to be waited for. Then it may not be there.
        Raises ShardError if other bytes come, and if there is no room for them.
        """
        path = self.folder / f"{sha256}{suffix}"
        if self.has(sha256, size=size, suffix=suffix):
            return path
        with self._as_shard_error(name, size), self._download_lock(sha256, wait=ahead_if is None) as is_ours:
            if is_ours and (ahead_if is None or ahead_if()) and not _touch(path, size):
                self._download(path, sha256, size, name, download)
        return path

    def has(self, sha256: str, *, size: int, suffix: str) -> bool:
        """Whether the file is there; if so, it is now the most recently used."""
        return _touch(self.folder / f"{sha256}{suffix}", size)

    def room(self) -> int:
        """Bytes of copies that there may be: max_bytes, or what the disk has. Raises ShardError if unknown."""
        if self.max_bytes is not None:
            return self.max_bytes
        with self._as_shard_error("copies", 0):
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / ".lock") as file:
                return self._limit(self._total(file))

    def fetch_folder(self, files: Mapping[str, str], *, name: str, read: Callable[[str], bytes]) -> Path:
        """A local folder with these small files (path -> sha256) under their own names.

        name: where they come from, for messages. read: gives a file's bytes; it may raise ShardError.
        Raises ShardError if they have another digest.
        """
        key = hashlib.sha256("".join(f"{path}\0{digest}\0" for path, digest in sorted(files.items())).encode())
        target = self.folder / "folders" / key.hexdigest()[:32]
        with self._as_shard_error(name, 0), self._download_lock(key.hexdigest()):
            if not _is_folder_of(target, files):
                target.parent.mkdir(exist_ok=True)
                shutil.rmtree(target, ignore_errors=True)
                partial = partial_path(target)
                try:
                    for path, digest in files.items():
                        (partial / path).parent.mkdir(parents=True, exist_ok=True)
                        (partial / path).write_bytes(_read_checked(path, digest, name, read))
                    partial.rename(target)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
        return target

    def _download(self, path: Path, sha256: str, size: int, name: str, download: Callable[[], Iterable[bytes]]) -> None:
        wrong = 0
        while True:
            partial = partial_path(path)
            try:
                self._reserve(partial, size, name)
                digest, got = _write(partial, download())
                if (digest, got) == (sha256, size):
                    with locked(self.folder / ".lock"):  # who counts the files sees it under one of its names
                        os.replace(partial, path)
                    _touch(path, size)
                    return
            except OSError as error:
                if error.errno not in _FULL or not self._make_room(size):
                    raise
                continue
            finally:
                partial.unlink(missing_ok=True)
            wrong += 1
            if wrong == DOWNLOADS:
                raise ShardError(
                    f"{name}: downloaded {DOWNLOADS} times: got {got} bytes with sha256 {digest[:12]}, the manifest "
                    f"says {size} bytes with {sha256[:12]}; it was damaged or swapped at its source: remove it there, "
                    "and run the same dsvl-prep build"
                )

    def _reserve(self, partial: Path, size: int, name: str) -> None:
        """Make room, and take it: an empty file of full size, which all who count see."""
        with locked(self.folder / ".lock") as file:
            total = self._total(file)
            limit = self._limit(total)
            if size > limit:
                raise ShardError(
                    f"{self.folder}: {name} has {size} bytes, and the cache may hold {limit}; "
                    + ("free some space, or " if self.max_bytes is None else "raise its limit, or ")
                    + "choose a folder with more (DSVL_CACHE)"
                )
            if total + size > limit:
                total = self._evict(limit - size)
            with partial.open("wb") as reserved:
                reserved.truncate(size)
            _write_total(file, total + size)

    def _total(self, lock: BinaryIO) -> int:
        total = _read_total(lock)
        return self._evict(None) if total is None else total

    def _limit(self, total: int) -> int:
        room = total + shutil.disk_usage(self.folder).free
        return int(room * FREE_SHARE) if self.max_bytes is None else min(self.max_bytes, room)

    def _make_room(self, size: int) -> bool:
        """Whether files could be removed for a disk that is full."""
        with locked(self.folder / ".lock") as file:
            before = self._evict(None)
            after = self._evict(max(0, before - size))
            _write_total(file, after)
        return after < before

    def _evict(self, room: int | None) -> int:
        """Remove leftovers, then the least recently used until `room` bytes are enough. Returns the bytes that stay."""
        copies: list[tuple[int, int, Path]] = []
        total = 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                ours = _OURS.fullmatch(entry.name)
                if ours is None:
                    continue
                path = Path(entry.path)
                if ours["partial"] and not self._is_downloading(ours["partial"]):
                    path.unlink(missing_ok=True)
                    continue
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
                total += status.st_size
                if ours["whole"]:
                    copies.append((status.st_mtime_ns, status.st_size, path))
        for _, size, path in sorted(copies):
            if room is None or total <= room:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total

    def _is_downloading(self, sha256: str) -> bool:
        with self._lock_file(sha256).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
            fcntl.flock(file, fcntl.LOCK_UN)
        return False

    def _lock_file(self, sha256: str) -> Path:
        return self.folder / f".lock-{sha256[:2]}"

    @contextlib.contextmanager
    def _download_lock(self, sha256: str, *, wait: bool = True) -> Iterator[bool]:
        """Gives whether the lock was taken, which it always is if it may `wait`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self._lock_file(sha256), wait=wait):
                yield True
        except BlockingIOError:
            yield False

    @contextlib.contextmanager
    def _as_shard_error(self, name: str, size: int) -> Iterator[None]:
        """What the disk refuses, as ShardError."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                free = shutil.disk_usage(self.folder).free
                problem = f"no room for {name}: {size} bytes needed, {free} free, and nothing left to remove; free some"
            else:
                problem = f"cannot be written or locked ({error.strerror}); fix that"
            raise ShardError(f"{self.folder}: {problem}, or choose another folder for the cache (DSVL_CACHE)") from None


def _read_total(file: BinaryIO) -> int | None:
    text = file.read(20)
    return int(text) if len(text) == 20 and text.isdigit() else None


def _write_total(file: BinaryIO, total: int) -> None:
    """In place, so that it also works on a full disk."""
    file.seek(0)
    file.write(f"{total:020d}".encode())


def _touch(path: Path, size: int) -> bool:
    """Whether the file is there; if so, it is now the most recently used."""
    try:
        if path.stat().st_size != size:
            return False
    except OSError:
        return False
    with contextlib.suppress(OSError):  # a cache that somebody else owns can be read too
        now = time.time_ns()  # finer than the clock that the kernel stamps files with
        os.utime(path, ns=(now, now))
    return True


def _write(path: Path, pieces: Iterable[bytes]) -> tuple[str, int]:
    """(sha256, bytes) of what was written."""
    sha256, size = hashlib.sha256(), 0
    with path.open("rb+") as file:
        for piece in pieces:
            file.write(piece)
            sha256.update(piece)
            size += len(piece)
    return sha256.hexdigest(), size


def _is_folder_of(folder: Path, files: Mapping[str, str]) -> bool:
    try:
        return all(file_sha256(folder / path) == digest for path, digest in files.items())
    except OSError:
        return False


def _read_checked(path: str, expected: str, name: str, read: Callable[[str], bytes]) -> bytes:
    for _ in range(DOWNLOADS):
        content = read(path)
        digest = hashlib.sha256(content).hexdigest()
        if digest == expected:
            return content
    raise ShardError(
        f"{name}/{path}: downloaded {DOWNLOADS} times: its sha256 is {digest[:12]}, the manifest says {expected[:12]}; "
        "it was edited or damaged at its source: run the same dsvl-prep build"
    )
