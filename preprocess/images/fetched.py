"""Images that `dsvl-prep fetch` downloaded, found by their URLs.

    <folder>/fetched.sqlite                          the ledger: a row per URL, with what became of it
    <folder>/<first 2 digits>/<SHA-256 of URL>.jpg   the files, as the servers sent them

Rule: a build only reads this folder. An image is there if the ledger says so and its bytes have the ledger's digest.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sqlite3
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote

from preprocess.containers.remote_path import is_remote
from preprocess.errors import DataError, RejectError
from preprocess.images.stamps import Stamps, stamps_one_by_one
from preprocess.images.tail import TAIL_BYTES

T = TypeVar("T")

LEDGER = "fetched.sqlite"
LOCK = "lock"
VERSION = 1
"""The layout of the ledger, as its user_version"""

STATES: dict[str, str] = {
    "waiting": "not tried yet",
    "fetched": "the file is in the folder",
    "unreachable": "no whole answer: a timeout, a broken connection, HTTP 408, 425, 429 or 5xx",
    "gone": "HTTP 404 or 410",
    "refused": "another answer than the file, such as HTTP 401, 403 or 451",
    "bad_url": "not a URL that can be requested: no host, a control character, a password in it",
    "bad_redirect": "more than 5 redirects, or one to something that is not http or https",
    "private_address": "the host has an address of a private network (`--allow-private`)",
    "too_large": "more than `fetch.max_megabytes`",
    "not_image": "the file is not an image; often a page that says that the image is gone",
    "opted_out": "the owner does not want it in training data (header `X-Robots-Tag: noai` or `noimageai`)",
}
"""What can have become of a URL"""


class Found(NamedTuple):
    """A row of the ledger. sha256: of the file's bytes."""

    state: str
    detail: str
    extension: str
    sha256: bytes


def url_key(url: str) -> bytes:
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).digest()


def image_file(folder: Path, key: bytes, extension: str) -> Path:
    """extension: of the image's format, without a dot; "" for a format that builds do not read."""
    name = key.hex()
    return folder / name[:2] / (f"{name}.{extension}" if extension else name)


def is_fetched_folder(path: Path) -> bool:
    return not is_remote(path) and (path / LEDGER).is_file()


class FetchedStore:
    """The image store whose names are URLs."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError for a ledger that cannot be read, or that a fetch is writing."""
        self.folder = folder
        ledger = folder / LEDGER
        self._hold()
        if (folder / f"{LEDGER}-journal").exists():
            raise DataError(f"{folder}: a dsvl-prep fetch was stopped while it wrote there; run it again")
        # immutable: no lock files, so that the folder may be read-only or on a network file system.
        address = f"file:{quote(str(ledger.absolute()))}?mode=ro&immutable=1"
        try:
            self._rows = sqlite3.connect(address, uri=True, check_same_thread=False)
            (version,) = self._rows.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error as error:
            raise _unreadable(ledger, error) from None
        if version != VERSION:
            raise DataError(f"{ledger}: has layout {version}, this dsvl reads {VERSION}; fetch into another folder")

    def read(self, name: str) -> bytes:
        found, path = self._find(name)
        data = _of_file(path, path.read_bytes)
        if hashlib.sha256(data).digest() != found.sha256:
            raise RejectError(
                "image_unreadable",
                f"{path} is not the file that was downloaded; run dsvl-prep fetch --verify, which downloads it again",
            )
        return data

    def tail(self, name: str) -> tuple[int, bytes]:
        _, path = self._find(name)
        with _of_file(path, lambda: path.open("rb")) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            return size, file.read()

    def stamp(self, name: str) -> tuple[int, int]:
        _, path = self._find(name)
        status = _of_file(path, path.stat)
        return status.st_size, status.st_mtime_ns

    def stamps(self, names: Sequence[str]) -> Stamps:
        return stamps_one_by_one(self.stamp, names)

    def names_below(self, name: str) -> list[str]:
        """A URL is never a folder."""
        return []

    def _hold(self) -> None:
        """Keep a fetch out for as long as this store is open."""
        with contextlib.suppress(FileNotFoundError):  # a copy of the folder without it
            lock = (self.folder / LOCK).open("rb")
            weakref.finalize(self, lock.close)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"{self.folder}: a dsvl-prep fetch is running there; wait for it") from None
            except OSError:  # a file system without locks
                pass

    def _find(self, url: str) -> tuple[Found, Path]:
        key = url_key(url)
        try:
            row = self._rows.execute(
                "SELECT state, detail, extension, sha256 FROM images WHERE key = ?", (key,)
            ).fetchone()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise _unreadable(self.folder / LEDGER, error) from None
        if row is None or row[0] == "waiting":
            raise not_fetched(f"{self.folder} does not have it yet")
        found = Found(*row)
        if found.state != "fetched":
            raise RejectError("image_missing", f"dsvl-prep fetch found: {found.state}: {found.detail}")
        if not f"{found.extension}0".isalnum():
            raise _unreadable(self.folder / LEDGER, f"the ending {found.extension!r} of a file")
        return found, image_file(self.folder, key, found.extension)


def _of_file(path: Path, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except FileNotFoundError:
        raise RejectError("image_missing", f"{path} is gone; run dsvl-prep fetch again") from None


def not_fetched(why: str) -> RejectError:
    return RejectError("image_missing", f"{why}, and builds do not download; run dsvl-prep fetch with this blend file")


def _unreadable(ledger: Path, error: object) -> DataError:
    return DataError(f"{ledger}: cannot be read ({error}); move the folder away and run dsvl-prep fetch again")
