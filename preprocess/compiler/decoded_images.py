"""Images that the fingerprint stage decoded completely, so that the compiler need not decode them again to check them.

Rule: an image is known by the digest of its bytes. So a file that changed since, and one that could not be decoded, is
decoded by the compiler, which also says why it is a reject; shards are the same with and without this.

The file is an array uint64 [3, N]: the two words of each digest, sorted by the first, and the image's orientation. The
processes of a build share it in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocess.compiler.array_files import write_array
from preprocess.dedupe.fingerprint import Fingerprints, bytes_digest

NAME = "decoded.npy"


class DecodedImages:
    def __init__(self, words: npt.NDArray[np.uint64]) -> None:
        self._first, self._second, self._orientation = words

    def orientation(self, data: bytes) -> int | None:
        """The orientation of an image that was decoded without an error, 1 to 8; None for any other."""
        first, second = bytes_digest(data)
        row = int(np.searchsorted(self._first, np.uint64(first)))
        while row < len(self._first) and self._first[row] == first:
            if self._second[row] == second:
                return int(self._orientation[row])
            row += 1
        return None


def write_decoded(fingerprints: Sequence[Fingerprints], path: Path) -> None:
    """Those of level look."""
    parts = [part[part["orientation"] > 0] for part in fingerprints]
    words = np.concatenate([np.column_stack([part["digest"], part["orientation"].astype(np.uint64)]) for part in parts])
    write_array(path, np.ascontiguousarray(words[np.argsort(words[:, 0], kind="stable")].T))


@lru_cache(maxsize=1)
def open_decoded(path: Path) -> DecodedImages:
    """Opened once per worker process."""
    return DecodedImages(np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)))
