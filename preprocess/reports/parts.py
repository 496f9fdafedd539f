"""What the indexes of a build say of each dataset's side of the split, as columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from preprocess.views.member_hashes import content_of, hash_members
from shards import Build, Shard
from shards.format.index import TILES
from shards.format.records import records_each


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A dataset's side of the split. lengths: text tokens + tiles x image_tokens. images_shown: hashes, repeated.

    tiles: of each image; empty in a build without tiles.

    records: branches of each sample; 1 of a sample without branches.

    contents: a hash of each sample's tokens and images, by which equal samples are found.
    """

    dataset: str
    split: str
    lengths: npt.NDArray[np.int64]
    trained: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    records: npt.NDArray[np.int64]
    tiles: npt.NDArray[np.int64]
    images_shown: npt.NDArray[np.uint64]
    contents: npt.NDArray[np.uint64]


def read_parts(build: Build) -> list[Part]:
    """All indexes, one after the other. Memory: 48 bytes a sample, and 8 to 16 an image. Raises ShardError."""
    columns: dict[tuple[str, str], list[tuple[npt.NDArray[np.int64], ...]]] = {}
    shown: dict[tuple[str, str], list[npt.NDArray[np.uint64]]] = {}
    contents: dict[tuple[str, str], list[npt.NDArray[np.uint64]]] = {}
    for dataset, split, shard in build.shards():
        table, hashes = shard.index.table, hash_members(shard)
        text, trained, images = (
            table.column(name).to_numpy().astype(np.int64) for name in ("text_tokens", "trained_tokens", "images")
        )
        lengths = text + shard.tiles_of(np.arange(len(shard))) * build.manifest.config.image_tokens
        columns.setdefault((dataset, split), []).append(
            (lengths, trained, images, records_each(shard.info), _tiles(shard))
        )
        shown.setdefault((dataset, split), []).append(_hashes(table.column("groups")))
        contents.setdefault((dataset, split), []).append(content_of(hashes.tokens, hashes.images))
        shard.forget_index()
    return [
        Part(
            dataset=dataset,
            split=split,
            lengths=np.concatenate([each[0] for each in shards]),
            trained=np.concatenate([each[1] for each in shards]),
            images=np.concatenate([each[2] for each in shards]),
            records=np.concatenate([each[3] for each in shards]),
            tiles=np.concatenate([each[4] for each in shards]),
            images_shown=np.concatenate(shown[dataset, split]),
            contents=np.concatenate(contents[dataset, split]),
        )
        for (dataset, split), shards in columns.items()
    ]


def _tiles(shard: Shard) -> npt.NDArray[np.int64]:
    if not shard.index.has_tiles:
        return np.zeros(0, np.int64)
    tiles: npt.NDArray[np.int64] = (
        shard.index.table.column(TILES).combine_chunks().flatten().to_numpy().astype(np.int64)
    )
    return tiles


def _hashes(groups: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """64-bit hashes of the ids of all images that samples show."""
    ids = (text.as_buffer() for chunk in groups.chunks for text in chunk.flatten() if text.is_valid)
    return np.fromiter((xxhash.xxh3_64_intdigest(text) for text in ids), np.uint64)
