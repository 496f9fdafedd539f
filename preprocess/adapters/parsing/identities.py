"""Ids of conversations, unique within a dataset.

Rule: an id is `<file label>/<record id>`, or `<file label>/#<record number>` for a record without an id. It depends
only on the record and the names of the annotation files, so it is the same in every build.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from preprocess.adapters.base import IdSet, Option, Request
from preprocess.errors import RejectError

DUPLICATE_IDS = Option(
    default="reject",
    choices=("reject", "keep"),
    help="What to do with a record whose id an earlier record of the file has. Set keep for merged LLaVA files: "
    "they use image ids as record ids, so ids repeat.",
)

_MERGED_AT_ONCE = 1 << 17


class Identities:
    """The ids assigned so far, as 64-bit hashes: the chance of a false match among 10^7 of them is one in 10^5."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._keep = request.options.get("duplicate_ids") == "keep"
        self._seen: IdSet = HashSet() if request.ids is None else request.ids
        self._labels = _labels(request)
        self._files = {path: request.source_file(path) for path in request.annotations}

    def label(self, path: Path) -> str:
        return self._labels[path]

    def file(self, path: Path) -> str:
        """The path as sources show it."""
        return self._files[path]

    def claim(self, label: str, own: str | None, number: int) -> str:
        """The conversation's id. Raises RejectError for an own id that is taken, unless duplicates are kept."""
        identity = f"{label}/#{number}" if own is None else f"{label}/{own}"
        digest = id_digest(identity)
        if digest in self._seen:
            if own is not None and not self._keep:
                raise RejectError(
                    "duplicate_id",
                    f"an earlier record has the id {own}; set the adapter's option duplicate_ids: keep",
                )
            while digest in self._seen:
                identity = next_name(identity, number)
                digest = id_digest(identity)
        self._seen.add(digest, number)
        return identity


def id_digest(identity: str) -> int:
    return xxhash.xxh3_64_intdigest(identity.encode())


def next_name(identity: str, number: int) -> str:
    """The name to try after a taken one. number: of the record in its file."""
    return f"{identity}#{number}"


class HashSet:
    """A set of 64-bit numbers in 8 bytes each: a sorted array, and a small set that is merged into it when full."""

    def __init__(self) -> None:
        self._sorted: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._latest: set[int] = set()

    def __contains__(self, value: int) -> bool:
        if value in self._latest:
            return True
        place = self._sorted.searchsorted(np.uint64(value))
        return bool(place < len(self._sorted) and self._sorted[place] == value)

    def add(self, value: int, record: int = 0) -> None:
        self._latest.add(value)
        if len(self._latest) == _MERGED_AT_ONCE:
            latest = np.fromiter(self._latest, np.uint64, _MERGED_AT_ONCE)
            latest.sort()
            self._latest.clear()
            self._sorted = np.concatenate([self._sorted, latest])
            self._sorted.sort(kind="stable")  # two sorted runs: one merge


def _labels(request: Request) -> dict[Path, str]:
    """The stem of each file, or its path below the root where two files have the same stem."""
    stems = Counter(path.stem for path in request.annotations)
    labels: dict[Path, str] = {}
    taken: set[str] = set()  # a dataset may have a file for each of its records
    for path in request.annotations:
        label = path.stem if stems[path.stem] == 1 else request.source_file(path).removesuffix(path.suffix)
        while label in taken:
            label += "'"
        taken.add(label)
        labels[path] = label
    return labels
