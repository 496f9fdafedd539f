"""Ids of conversations, unique in a dataset.

Rule: an id is `<file label>/<record id>`, or `<file label>/#<record number>` where the record has none. It depends on
the record and the names of the annotation files alone, so it is the same in every build.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import xxhash

from preprocess.adapter import Option, Request
from preprocess.adapters.fields import BadRecordError

DUPLICATE_IDS = Option(
    default="reject",
    choices=("reject", "keep"),
    help="What to do with a record whose id an earlier record of the file has. Set keep for merged LLaVA files: "
    "they repeat image ids as record ids.",
)


class Identities:
    """The ids given so far, as 64-bit hashes: 10^7 of them fit in memory, and a false match is a one in 10^5 chance."""

    def __init__(self, request: Request) -> None:
        self._keep = request.options.get("duplicate_ids") == "keep"
        self._seen: set[int] = set()
        self._labels = _labels(request)

    def label(self, path: Path) -> str:
        return self._labels[path]

    def claim(self, label: str, own: str | None, number: int) -> str:
        """The conversation's id. Raises BadRecordError for an own id that is taken, unless duplicates are kept."""
        identity = f"{label}/#{number}" if own is None else f"{label}/{own}"
        digest = xxhash.xxh3_64_intdigest(identity.encode())
        if digest in self._seen:
            if own is not None and not self._keep:
                raise BadRecordError(
                    "duplicate_id",
                    f"an earlier record has the id {own}; set the adapter's option duplicate_ids: keep to keep both",
                )
            while digest in self._seen:
                identity = f"{identity}#{number}"
                digest = xxhash.xxh3_64_intdigest(identity.encode())
        self._seen.add(digest)
        return identity


def _labels(request: Request) -> dict[Path, str]:
    """The stem of each file, or its path below the root where two files have the same stem."""
    stems = Counter(path.stem for path in request.annotations)
    labels: dict[Path, str] = {}
    for path in request.annotations:
        label = path.stem if stems[path.stem] == 1 else request.source_file(path).removesuffix(path.suffix)
        while label in labels.values():
            label += "'"
        labels[path] = label
    return labels
