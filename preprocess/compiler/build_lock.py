"""The lock of a build folder, and whether a build may use the folder."""

from __future__ import annotations

import contextlib
import fcntl
import secrets
from collections.abc import Iterator
from pathlib import Path

from preprocess.compiler.commit import CACHE
from preprocess.errors import ConfigError, DataError
from shards.format.manifest_file import NAME as MANIFEST
from shards.format.manifest_file import is_build


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One build at a time in a folder. The lock ends with its process, in whatever way that ends."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError([f"{folder}: is a file; expected a folder for the build"])
    manifest = folder / MANIFEST
    ours = (folder / CACHE / "lock").exists() or (manifest.is_file() and is_build(manifest.read_bytes()))
    if folder.exists() and not ours and any(folder.iterdir()):
        raise ConfigError([f"{folder}: holds other files, which a build would mix with its own; choose another --out"])
    try:
        (folder / CACHE).mkdir(parents=True, exist_ok=True)
        lock = (folder / CACHE / "lock").open("a")
    except OSError as error:
        raise ConfigError([f"{folder}: cannot be written ({error.strerror}); choose another --out"]) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another build is running there; wait for it, or choose another --out") from None
        try:
            lock.truncate(0)
            lock.write(secrets.token_hex(8))  # by which a node of a cluster knows the folder
            lock.flush()
        except OSError as error:
            raise DataError(f"{folder}: cannot be written ({error.strerror}); free some space there") from None
        yield
