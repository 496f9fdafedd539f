"""Images that records hold as text, kept as bytes next to the dataset's conversations.

    <folder>/embedded.blob     the decoded bytes, one image after the other
    <folder>/embedded.arrow    where each of them is, by its name: `data:` and the SHA-256 of the bytes

Rule: ingest writes these files once, in the order of the records; the stages after it only read them. Bytes that
several records hold are kept once.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from preprocess.containers.remote_path import is_remote
from preprocess.conversation import Image, embedded_name
from preprocess.images.index import ArchiveIndex, ArchiveIndexBuilder
from preprocess.images.index_cache import CachedIndex
from preprocess.images.reading import damaged_copy
from shards.files import flush_and_close

_BLOB, _INDEX = FILES = "embedded.blob", "embedded.arrow"


def has_embedded(folder: Path) -> bool:
    return not is_remote(folder) and (folder / _INDEX).is_file()


def index_files(folder: Path) -> list[Path]:
    """The index, if the folder has one."""
    return [folder / _INDEX] if has_embedded(folder) else []


def embedded_index(folder: Path) -> CachedIndex:
    """Names come from bytes, so the state of an image never changes."""
    return CachedIndex(folder / _INDEX, folder / _BLOB, (0, 0))


class EmbeddedWriter:
    """Keeps images in a folder, which must exist when the first one comes. Memory: about 200 bytes an image."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index = ArchiveIndexBuilder()
        self._kept: set[str] = set()
        self._blob: BinaryIO | None = None

    def keep(self, data: bytes) -> Image:
        name = embedded_name(data)
        if name not in self._kept:
            self._add(name, data)
        return Image(name=name)

    def keep_all(self, folder: Path) -> None:
        """Keep the images that another writer left in a folder, in their order there. Raises DataError for damage."""
        if not has_embedded(folder):
            return
        index = ArchiveIndex(folder / _INDEX)
        with (folder / _BLOB).open("rb") as blob:
            for row in np.argsort(index.offsets).tolist():
                name = index.keys[row].as_py().decode()
                if name not in self._kept:
                    blob.seek(int(index.offsets[row]))
                    data = blob.read(int(index.sizes[row]))
                    if embedded_name(data) != name:
                        raise damaged_copy(str(folder / _BLOB), name, folder.parent)
                    self._add(name, data)

    def _add(self, name: str, data: bytes) -> None:
        if self._blob is None:
            self._blob = (self._folder / _BLOB).open("wb", buffering=1 << 20)
        self._kept.add(name)
        self._index.add_kept([name], self._blob.tell(), data)
        self._blob.write(data)

    def close(self) -> None:
        """Complete the files; without an image there are none."""
        if self._blob is not None:
            flush_and_close(self._blob)
            self._index.write(self._folder / _INDEX)

    def release(self) -> None:
        """Close the file, complete or not; the folder of an incomplete one is thrown away."""
        if self._blob is not None:
            self._blob.close()
