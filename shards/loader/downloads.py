"""Shards that next batches need, downloaded by threads of the process that makes the batches.

Rule: nothing depends on it but time. What is not there when a sample is read is downloaded then; an error is raised
there, and not here. Processes leave files to each other that one of them is downloading.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from functools import partial

from shards.errors import ShardError
from shards.format.shard_info import ShardInfo
from shards.format.split import SplitSamples
from shards.storage.store import Store

THREADS = 2
"""Files that a process downloads at a time, each in several pieces"""


class Downloads:
    """Of one split. It may be sent to other processes, without what it is doing."""

    def __init__(self, store: Store, split: SplitSamples) -> None:
        self._store, self._split = store, split
        self._last: Sequence[int] = ()
        self._missing: deque[ShardInfo] = deque()
        self._needed: frozenset[str] = frozenset()  # paths of what was missing, less what was read since
        self._lock = threading.Lock()
        self._running = 0

    def __reduce__(self) -> tuple[type[Downloads], tuple[Store, SplitSamples]]:
        return Downloads, (self._store, self._split)

    def follow(self, shards: Sequence[int]) -> None:
        """Download these, in this order, instead of those of the last call that are still missing.

        Copies that are there become the most recently used, so that others make room for those that are not.
        """
        if shards == self._last:
            return
        self._last = shards
        missing = deque(info for info in map(self._split.info, shards) if not self._is_there(info))
        with self._lock:
            self._missing = missing
            self._needed = frozenset(info.path for info in missing)
            starting = min(THREADS, len(missing)) - self._running
            self._running += max(0, starting)
        for _ in range(starting):
            try:
                threading.Thread(target=self._work, name="dsvl-download", daemon=True).start()
            except RuntimeError:  # the process may start no more threads: shards are downloaded when they are read
                with self._lock:
                    self._running -= 1

    def drop(self, shards: set[int]) -> None:
        """Do not download these: their samples were read."""
        paths = {self._split.info(number).path for number in shards}
        with self._lock:
            self._missing = deque(info for info in self._missing if info.path not in paths)
            self._needed -= paths

    def stop(self) -> None:
        """Begin no further download."""
        self.follow(())

    def _is_there(self, info: ShardInfo) -> bool:
        has_index = self._store.is_local(info.index, size=info.index_size, sha256=info.index_sha256)
        return self._store.is_local(info.path, size=info.size, sha256=info.sha256) and has_index

    def _is_needed(self, path: str) -> bool:
        """Whether a shard may still be read: what was read made room, and would take it from others."""
        return path in self._needed

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._missing:
                    self._running -= 1
                    return
                info = self._missing.popleft()
            is_needed = partial(self._is_needed, info.path)
            try:
                self._store.fetch_ahead(info.index, size=info.index_size, sha256=info.index_sha256, is_needed=is_needed)
                self._store.fetch_ahead(info.path, size=info.size, sha256=info.sha256, is_needed=is_needed)
            except (ShardError, OSError, RuntimeError):  # RuntimeError: the program ends
                continue
