"""Keys and values that are kept for later prompts: of images, and of the beginnings of conversations.

Both share one bound in bytes; what was used longest ago is dropped first.

Shapes: T positions.
"""

# ruff: noqa: N803 - names end in their shape

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from trainer.inference.cached_decoder import Prompt
from trainer.inference.image_files import ImageFiles
from trainer.inference.slots import States

MOST_PREFIXES = 256
"""Since each is compared with every prompt"""

Trace = npt.NDArray[np.int64]
"""[T]: what is at each position of a sequence: the id of a token, or a negative number from the digest of an image"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prefix:
    """A sequence that was read. positions: those whose keys and values are in `states`, ascending."""

    trace: Trace
    positions: npt.NDArray[np.int64]
    states: States

    def take(self, positions: npt.NDArray[np.int64]) -> States:
        """The states at positions, which are the first of `self.positions`."""
        return self.states.first(len(positions))


class StateCache:
    """Images by the digest of their pixels, and prefixes. hits, misses: of images. files: where images are kept too.

    Methods may be called from any thread.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.hits = self.misses = 0
        self.image_bytes = self.prefix_bytes = 0
        self.files: ImageFiles | None = None
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes | int, States | Prefix] = OrderedDict()
        self._numbers = itertools.count()

    @property
    def num_bytes(self) -> int:
        return self.image_bytes + self.prefix_bytes

    def image(self, digest: bytes) -> States | None:
        """The states of a tile, at position 0."""
        with self._lock:
            states = self._entries.get(digest)
            if isinstance(states, States):
                self._entries.move_to_end(digest)
            else:
                states = None if self.files is None else self.files.read(digest)
                if states is None:
                    self.misses += 1
                    return None
                self._add(digest, states)
            self.hits += 1
            return states

    def add_image(self, digest: bytes, states: States, *, others: int = 0) -> None:
        """others: how many more times it is shown where it was read, which are hits."""
        with self._lock:
            self.hits += others
            self._add(digest, states)
        if self.files is not None:
            self.files.write(digest, states)

    def count(self, *, hits: int = 0, misses: int = 0) -> None:
        """Count images that were found elsewhere, or were not looked up."""
        with self._lock:
            self.hits, self.misses = self.hits + hits, self.misses + misses

    def clear(self) -> None:
        """Forget everything that is in memory; the counts stay."""
        with self._lock:
            self._entries.clear()
            self.image_bytes = self.prefix_bytes = 0

    def prefix(self, trace: Trace) -> tuple[Prefix | None, int]:
        """The sequence that shares the longest beginning with this one, and the length of that beginning."""
        with self._lock:
            best, longest = None, 0
            for number, entry in self._entries.items():
                # only what has the same token there shares more
                if (
                    isinstance(entry, Prefix)
                    and longest < min(len(entry.trace), len(trace))
                    and entry.trace[longest] == trace[longest]
                ):
                    length = num_shared(entry.trace, trace)
                    if length > longest:
                        best, longest = number, length
            if best is None:
                return None, 0
            self._entries.move_to_end(best)
            entry = self._entries[best]
            assert isinstance(entry, Prefix)
            return entry, longest

    def add_prefix(self, prefix: Prefix) -> None:
        """Keep a sequence instead of those that it continues; nothing is kept twice."""
        with self._lock:
            prefixes = [(number, entry) for number, entry in self._entries.items() if isinstance(entry, Prefix)]
            alike = [(number, entry) for number, entry in prefixes if _continues(entry.trace, prefix.trace)]
            if any(len(entry.trace) >= len(prefix.trace) for _, entry in alike):
                return
            for number, _ in alike:
                self._drop(number)
            if len(prefixes) >= MOST_PREFIXES:
                self._drop(prefixes[0][0])
            self._add(next(self._numbers), prefix)

    def _add(self, key: bytes | int, entry: States | Prefix) -> None:
        self._drop(key)
        num_bytes = _bytes_of(entry)
        if num_bytes > self._limit_bytes:
            return
        while self.num_bytes + num_bytes > self._limit_bytes:
            self._drop(next(iter(self._entries)))
        self._entries[key] = entry
        self._count(entry, num_bytes)

    def _drop(self, key: bytes | int) -> None:
        if (entry := self._entries.pop(key, None)) is not None:
            self._count(entry, -_bytes_of(entry))

    def _count(self, entry: States | Prefix, num_bytes: int) -> None:
        if isinstance(entry, States):
            self.image_bytes += num_bytes
        else:
            self.prefix_bytes += num_bytes


def num_shared(first: Trace, second: Trace) -> int:
    """How many positions from the start are the same in both sequences."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def _continues(first: Trace, second: Trace) -> bool:
    """Whether one of two sequences begins with all of the other."""
    length = min(len(first), len(second))
    is_alike = all(first[index] == second[index] for index in (length - 1, length // 2))  # which most are not
    return is_alike and num_shared(first, second) == length


def _bytes_of(entry: States | Prefix) -> int:
    return entry.num_bytes if isinstance(entry, States) else entry.states.num_bytes + 2 * entry.trace.nbytes


def digest_of(tile_3SS: torch.Tensor) -> bytes:
    """Of a tile's pixels. Cryptographic: what one client shows must never stand for what another shows."""
    return hashlib.sha256(tile_3SS.contiguous().numpy().data).digest()


def trace_of(prompt: Prompt, digests: Sequence[bytes], image_tokens: int) -> Trace:
    """digests: of each tile."""
    trace = prompt.ids.copy()
    for slot, digest in zip(prompt.slots, digests, strict=True):
        words = np.frombuffer(hashlib.shake_256(digest).digest(8 * image_tokens), np.int64)
        trace[slot : slot + image_tokens] = words | np.int64(-1 << 63)  # the whole digest decides, not 64 bits of it
    return trace
