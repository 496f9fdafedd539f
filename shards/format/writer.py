"""Write one shard: a WebDataset tar and its index, named by content.

Rule: a file appears under its final name only when it is whole and on disk. The name ends in a digest over both files,
so a newer build never overwrites the shards of an older one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from shards.files import flush_and_close, partial_path, sync_folder
from shards.format.container import BLOCK, END_OF_ARCHIVE, encode_tokens, member_names, padding, tar_header
from shards.format.index import SCHEMA, TILED_SCHEMA, TILES, IndexWriter
from shards.format.shard_info import ShardInfo

_KEY = re.compile(r"[a-z0-9_-]{1,80}")


class ShardWriter:
    """Samples go in one by one; `finish` names the shard. Memory: one sample, and one index entry per sample."""

    def __init__(self, root: Path, folder: str, stem: str, *, tiled: bool = False, durable: bool = True) -> None:
        """The shard becomes `root/folder/<stem>-<digest>.tar`. tiled: whether the build has tiles.

        durable: wait until its files are on disk; not needed where they are sent elsewhere and removed.
        """
        self._durable = durable
        self._root, self._folder, self._stem = root, folder, stem
        (root / folder).mkdir(parents=True, exist_ok=True)
        self._partial = partial_path(root / folder / f"{stem}.tar")
        self._partial_index = partial_path(root / folder / f"{stem}.arrow")
        self._file = self._partial.open("wb", buffering=1 << 20)
        self._sha256 = hashlib.sha256()
        self._offset = 0
        self._index = IndexWriter(TILED_SCHEMA if tiled else SCHEMA)
        self._keys: set[str] = set()
        self._branches: list[int] = []

    def add(
        self,
        key: str,
        *,
        metadata: Mapping[str, Any],
        tokens: npt.NDArray[np.int32],
        images: Sequence[tuple[str, bytes]],
        trained_tokens: int,
        groups: Sequence[str],
        tiles: Sequence[int] = (),
    ) -> None:
        """tokens: int32 [2, T], ids over labels, or [3, T] with branch numbers. images: (extension, bytes) in the
        order of placeholders. tiles: of each image, in a shard of a build with tiles. Samples with fewer branches come
        first.

        Raises ValueError for a key that a WebDataset reader would split or join, and for a sample that comes too late;
        OSError if the disk is full.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"sample key {key!r}: expected 1 to 80 of a-z, 0-9, _ and -")
        if key in self._keys:
            raise ValueError(f"sample key {key!r} was there before; a WebDataset reader would take both for one sample")
        branches = int(tokens[2, -1]) if len(tokens) > 2 else 1
        if self._branches and branches < self._branches[-1]:
            raise ValueError(f"sample {key} has {branches} branches, the one before {self._branches[-1]}; sort them")
        self._keys.add(key)
        self._branches.append(branches)
        contents = [orjson.dumps(metadata), encode_tokens(tokens), *(data for _, data in images)]
        names = member_names(key, [extension for extension, _ in images])
        pieces: list[bytes] = []
        size, starts = 0, []
        for name, content in zip(names, contents, strict=True):
            pieces += (tar_header(name, len(content)), content, padding(len(content)))
            starts.append(size + BLOCK)
            size += BLOCK + len(content) + len(pieces[-1])
        region = b"".join(pieces)
        self._sha256.update(region)
        self._file.write(region)
        self._index.add(
            key=key,
            offset=self._offset,
            size=size,
            checksum=xxhash.xxh3_64_intdigest(region),
            text_tokens=tokens.shape[1] - len(images),
            trained_tokens=trained_tokens,
            images=len(images),
            groups=list(groups),
            member_offsets=starts,
            member_sizes=[len(content) for content in contents],
            member_checksums=[xxhash.xxh3_64_intdigest(content) for content in contents],
            tiles=list(tiles),
        )
        self._offset += size

    def finish(self) -> ShardInfo | None:
        """Put the shard in place and say what it is; None, and no file, if nothing was added."""
        if not len(self._index):
            self.discard()
            return None
        self._file.write(END_OF_ARCHIVE)
        self._sha256.update(END_OF_ARCHIVE)
        if self._durable:
            flush_and_close(self._file)
        else:
            self._file.close()
        digest = self._sha256.hexdigest()
        self._index.write(self._partial_index)
        index = self._partial_index.read_bytes()
        if self._durable:
            with self._partial_index.open("rb+") as file:
                os.fsync(file.fileno())
        index_digest = hashlib.sha256(index).hexdigest()
        both = hashlib.sha256(f"{digest}{index_digest}".encode()).hexdigest()
        stem = f"{self._folder}/{self._stem}-{both[:8]}"
        os.replace(self._partial_index, self._root / f"{stem}.arrow")
        os.replace(self._partial, self._root / f"{stem}.tar")
        if self._durable:
            sync_folder(self._root / self._folder)
        columns = self._index.columns
        return ShardInfo(
            path=f"{stem}.tar",
            size=self._offset + len(END_OF_ARCHIVE),
            sha256=digest,
            index=f"{stem}.arrow",
            index_size=len(index),
            index_sha256=index_digest,
            samples=len(self._index),
            images=sum(columns["images"]),
            text_tokens=sum(columns["text_tokens"]),
            trained_tokens=sum(columns["trained_tokens"]),
            tiles=sum(map(sum, columns[TILES])) if TILES in columns else None,
            branches=tuple(np.bincount(self._branches)[1:].tolist()) if self._branches[-1] > 1 else None,
        )

    def discard(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)
        self._partial_index.unlink(missing_ok=True)
