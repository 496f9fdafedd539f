"""Files that are whole or not there, also after a crash: write under another name, flush to disk, rename."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk, a quota or a file that takes no more"""


def flush_and_close(file: Any) -> None:
    """Everything on disk before the name says so."""
    with file:
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def disk_named(folder: Path, need_bytes: int | None = None) -> Iterator[None]:
    """A full disk or quota as an OSError that names the folder, what is free there and what is needed, if known.

    Writing to an open file raises one that names nothing.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL or error.filename is not None:
            raise
        raise OSError(error.errno, f"{error.strerror} ({_room(folder, need_bytes)})", str(folder)) from None


def _room(folder: Path, need_bytes: int | None) -> str:
    try:
        free = f"{shutil.disk_usage(folder).free:,} bytes free"
    except OSError:
        free = "free space unknown"
    return free if need_bytes is None else f"{free}, {need_bytes:,} needed"


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def owned_digest(owner: str, content: Any) -> xxhash.xxh3_128:
    """Of the content (any buffer) and of the name it belongs to, so that the content of another file does not pass."""
    digest = xxhash.xxh3_128(os.fsencode(owner) + b"\0")
    digest.update(content)
    return digest


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file so that a reader sees the old or the new one, never a part. Raises OSError with its path."""
    partial = partial_path(path)
    try:
        with disk_named(path.parent, len(content)), partial.open("wb") as file:
            file.write(content)
            flush_and_close(file)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):  # there may be none
            partial.unlink()
        if error.filename in (str(partial), partial):  # a name that nobody knows
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    sync_folder(path.parent)


def partial_path(path: Path) -> Path:
    """A name of its own for what is to become `path`, among processes of any machine; `.*.partial` finds them all."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def file_sha256(path: Path) -> str:
    """Hexadecimal digest of a file's bytes, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
