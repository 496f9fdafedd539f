"""Digests of the images that a task read, next to its result: `--check-inputs` compares the files with them.

The file is a sorted array of DIGEST, one for each image; one that could not be read is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xxhash

from preprocess.compiler.array_files import read_array, write_array
from preprocess.conversation import Image

DIGEST = np.dtype([("file", "<u8"), ("digest", "<u8")])


class ImageDigests:
    """Collects what a task reads."""

    def __init__(self) -> None:
        self._digests: dict[int, int] = {}

    def add(self, image: Image, data: bytes) -> None:
        self._digests[file_hash(image)] = xxhash.xxh3_64_intdigest(data)

    def write(self, path: Path) -> None:
        write_array(path, np.array(sorted(self._digests.items()), DIGEST))


def file_hash(image: Image) -> int:
    """Of the reference to a file; frames of one file have the same."""
    return xxhash.xxh3_64_intdigest(f"{image.store}\0{image.name}".encode("utf-8", "surrogatepass"))


def read_digests(path: Path) -> Mapping[int, int] | None:
    """`file_hash` -> digest of its bytes; None if an older version compiled the task, which kept none."""
    array = read_array(path, DIGEST)
    return None if array is None else dict(zip(array["file"].tolist(), array["digest"].tolist(), strict=True))
