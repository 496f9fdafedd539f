"""Which known image an image is a copy of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from preprocess.dedupe.fingerprint import Fingerprints
from preprocess.dedupe.near_search import near_matches

Rows = npt.NDArray[np.int64]

KINDS = ("bytes", "pixels", "near")


def match_images(
    queries: Fingerprints, known: Fingerprints, distance: int | None, *, threads: int = 1
) -> tuple[Rows, npt.NDArray[np.uint8]]:
    """For each query, the row of the known image it copies, or -1, int64 [Q]; and how, a number of KINDS, uint8 [Q].

    distance: of perceptual hashes, in bits; None: only equal bytes count, and fingerprints of level bytes are enough.
    """
    match = _equal(queries, known, "digest", "present")
    kind = np.zeros(len(queries), np.uint8)
    if distance is None:
        return match, kind
    rest = np.flatnonzero(match < 0)
    match[rest], kind[rest] = _equal(queries[rest], known, "pixels", "orientation"), 1
    rest = np.flatnonzero((match < 0) & (queries["orientation"] > 0) & ~queries["flat"])
    candidates = np.flatnonzero((known["orientation"] > 0) & ~known["flat"])
    near = near_matches(queries["hash"][rest], known["hash"][candidates], distance, threads=threads)
    match[rest[near >= 0]] = candidates[near[near >= 0]]
    kind[rest] = 2
    return match, kind


def _equal(queries: Fingerprints, known: Fingerprints, field: str, valid: str) -> Rows:
    """The first known row with the same two words; -1 for none."""
    rows = np.flatnonzero(known[valid])
    match = np.full(len(queries), -1, np.int64)
    if not len(rows):
        return match
    rows = rows[np.argsort(known[field][rows, 0], kind="stable")]
    words = known[field][rows]
    index = np.minimum(np.searchsorted(words[:, 0], queries[field][:, 0]), len(rows) - 1)
    equal = (words[index] == queries[field]).all(axis=1) & (queries[valid] > 0)
    match[equal] = rows[index[equal]]
    return match
