"""The ledger of a fetch: which URLs there are, and what became of each. It lets a stopped fetch resume.

Rule: it is SQLite, so memory does not grow with the number of URLs. A row says "fetched" only after its file has its
final name.
"""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dst.common.public_addresses import parse_url
from preprocess.adapters.parsing.fields import printable
from preprocess.errors import DataError
from preprocess.images.fetched import LEDGER, LOCK, STATES, VERSION, image_file, url_key

_ROWS_AT_ONCE = 256
_CACHE_KB = 64 << 10  # keys are random, so every insert is on another page
_TABLE = f"""
CREATE TABLE images (
    key BLOB PRIMARY KEY,
    url TEXT NOT NULL,
    host TEXT NOT NULL,
    run INTEGER NOT NULL,
    state TEXT NOT NULL,
    detail TEXT NOT NULL DEFAULT '',
    extension TEXT NOT NULL DEFAULT '',
    size INTEGER NOT NULL DEFAULT 0,
    sha256 BLOB NOT NULL DEFAULT x'',
    validator TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE INDEX waiting ON images (host, key) WHERE state = 'waiting';
PRAGMA user_version = {VERSION};
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a URL: a state of STATES. size in bytes and sha256: of the file, if there is one."""

    state: str
    detail: str = ""
    extension: str = ""
    size: int = 0
    sha256: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A URL to download. validator: ETag or Last-Modified of the answer that its partial file is from, or ""."""

    key: bytes
    url: str
    validator: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A URL that was fetched, with its file."""

    key: bytes
    path: Path
    size: int
    sha256: bytes


class Ledger:
    """Open one with `open_ledger`. All methods are for one thread; URLs are those of the current run."""

    def __init__(self, folder: Path, rows: sqlite3.Connection) -> None:
        self.folder = folder
        self._rows = rows
        (last,) = rows.execute("SELECT coalesce(max(run), 0) FROM images").fetchone()
        self._run = last + 1

    def add(self, urls: Iterable[str]) -> None:
        """The URLs of this run. A known one keeps its state; one that cannot be requested is settled at once.

        What else a row says is written again, and a state that there is none of waits: SQLite notices no flipped bit.
        """
        for url in urls:
            try:
                host, state, detail = parse_url(url).host, "waiting", ""
            except ValueError as error:
                host, state, detail = "", "bad_url", str(error)
            self._rows.execute(
                "INSERT INTO images (key, url, host, run, state, detail) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET run = excluded.run, url = excluded.url, host = excluded.host "
                "WHERE run <> excluded.run",
                (url_key(url), url, host, self._run, state, detail),
            )
        known = ", ".join(f"'{state}'" for state in STATES)
        self._rows.execute(
            f"UPDATE images SET state = 'waiting', detail = '' WHERE run = ? AND state NOT IN ({known})", (self._run,)
        )

    def retry(self, states: Iterable[str]) -> None:
        """URLs in these states wait again."""
        for state in states:
            self._rows.execute(
                "UPDATE images SET state = 'waiting', detail = '' WHERE run = ? AND state = ?", (self._run, state)
            )

    def hosts(self) -> list[str]:
        """The hosts of waiting URLs, those with most of them first: they take longest."""
        rows = self._rows.execute(
            "SELECT host FROM images WHERE state = 'waiting' AND run = ? GROUP BY host ORDER BY count(*) DESC, host",
            (self._run,),
        )
        return [host for (host,) in rows]

    def waiting(self, host: str) -> Iterator[Waiting]:
        """The waiting URLs of a host; outcomes may be recorded meanwhile."""
        key = b""
        while rows := self._rows.execute(
            "SELECT key, url, validator FROM images "
            "WHERE state = 'waiting' AND host = ? AND key > ? AND run = ? ORDER BY key LIMIT ?",
            (host, key, self._run, _ROWS_AT_ONCE),
        ).fetchall():
            for key, url, validator in rows:
                yield Waiting(key=key, url=url, validator=validator)

    def remember(self, key: bytes, validator: str) -> None:
        """Call it when a partial file is empty again, with what identifies the answer whose bytes it will get."""
        (before,) = self._rows.execute("SELECT validator FROM images WHERE key = ?", (key,)).fetchone()
        self._rows.execute("UPDATE images SET validator = ? WHERE key = ?", (validator, key))
        if before:  # on disk before the bytes: else a killed fetch would continue them as those of the answer before
            self.commit()

    def record(self, key: bytes, outcome: Outcome) -> None:
        self._rows.execute(
            "UPDATE images SET state = ?, detail = ?, extension = ?, size = ?, sha256 = ? WHERE key = ?",
            (outcome.state, printable(outcome.detail), outcome.extension, outcome.size, outcome.sha256, key),
        )

    def give_up(self, host: str, detail: str) -> int:
        """Settle the waiting URLs of a host as unreachable. Returns their number."""
        done = self._rows.execute(
            "UPDATE images SET state = 'unreachable', detail = ? WHERE state = 'waiting' AND host = ? AND run = ?",
            (detail, host, self._run),
        )
        return done.rowcount

    def stored(self) -> Iterator[Stored]:
        """The URLs that were fetched; outcomes may be recorded meanwhile."""
        key = b""
        while rows := self._rows.execute(
            "SELECT CAST(key AS BLOB), CAST(extension AS TEXT), size, sha256 FROM images "
            "WHERE state = 'fetched' AND key > ? AND run = ? ORDER BY key LIMIT ?",
            (key, self._run, _ROWS_AT_ONCE),
        ).fetchall():
            for key, extension, size, sha256 in rows:
                yield Stored(key=key, path=image_file(self.folder, key, extension), size=size, sha256=sha256)

    def counts(self) -> dict[str, int]:
        """State -> number of URLs."""
        rows = self._rows.execute(
            "SELECT state, count(*) FROM images WHERE run = ? GROUP BY state ORDER BY state", (self._run,)
        )
        return dict(rows.fetchall())

    def stored_bytes(self) -> int:
        (total,) = self._rows.execute(
            "SELECT coalesce(sum(size), 0) FROM images WHERE run = ? AND state = 'fetched'", (self._run,)
        ).fetchone()
        return int(total)

    def missing(self) -> Iterator[tuple[str, str, str]]:
        """(url, state, detail) of each URL that was not fetched, sorted by state and URL."""
        return iter(
            self._rows.execute(
                "SELECT url, state, detail FROM images WHERE run = ? AND state <> 'fetched' ORDER BY state, url",
                (self._run,),
            )
        )

    def commit(self) -> None:
        """Write to disk what was recorded. Until then a killed fetch forgets it."""
        self._rows.commit()


@contextlib.contextmanager
def open_ledger(folder: Path) -> Iterator[Ledger]:
    """The ledger of a folder, made if there is none; one program at a time.

    Raises DataError if another fetch runs there, if the folder cannot be written, or if it holds other files.
    """
    path = folder / LEDGER
    try:
        if not path.exists() and folder.is_dir() and any(islice(folder.iterdir(), 1)) and not _is_ours(folder):
            raise DataError(f"{folder}: holds other files; set fetch.folder to a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); set fetch.folder to another folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another fetch or a build is using it; wait for it") from None
        try:
            with contextlib.closing(sqlite3.connect(path)) as rows:
                rows.execute(f"PRAGMA cache_size = {-_CACHE_KB}")
                if not rows.execute("SELECT 1 FROM sqlite_master WHERE name = 'images'").fetchone():
                    rows.executescript(_TABLE)
                ledger = Ledger(folder, rows)
                try:
                    yield ledger
                finally:
                    ledger.commit()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}: {error}; if the disk is not full, move the folder away and run it again"
            ) from None


def _is_ours(folder: Path) -> bool:
    """Whether a fetch that was killed at its very start made this folder."""
    return [path.name for path in folder.iterdir()] == [LOCK]
