"""What a sample consists of, as 64-bit hashes: from the checksums that an index has of each member.

No key is part of them, so equal samples have equal hashes wherever they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards import Shard, ShardError
from shards.sampling.permutation import mix

U64 = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberHashes:
    """uint64 [samples] each: of the metadata, of the tokens, and of the images in their order (0 without any)."""

    metadata: U64
    tokens: U64
    images: U64


def hash_members(shard: Shard) -> MemberHashes:
    """The hashes of all samples of a shard. Raises ShardError if its index is damaged."""
    table = shard.index.table.select(["key", "member_checksums"])
    try:
        table.validate(full=True)
    except (ValueError, pa.ArrowException) as error:
        raise ShardError(f"{shard.name}: its index {shard.info.index} is damaged: {error}") from None
    column = table.column("member_checksums")
    lists: Any = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    ends = lists.offsets.to_numpy() - lists.offsets[0].as_py()
    checksums: U64 = lists.flatten().to_numpy()
    starts, lengths = ends[:-1], np.diff(ends)
    if len(lists) and lengths.min() < 2:
        raise ShardError(f"{shard.name}: its index {shard.info.index} has samples without metadata or tokens")
    place = np.arange(len(checksums), dtype=np.uint64) - np.repeat(starts.astype(np.uint64), lengths)
    with np.errstate(over="ignore"):
        hashes = mix(checksums + (place + np.uint64(1)) * _GOLDEN)  # so that a sum of them depends on the order
    of_images = np.where(place < 2, np.uint64(0), hashes)
    return MemberHashes(
        metadata=hashes[starts],
        tokens=hashes[starts + 1],
        images=np.add.reduceat(of_images, starts) if len(starts) else of_images,
    )


def content_of(tokens: U64, images: U64) -> U64:
    """One hash for tokens and images together."""
    with np.errstate(over="ignore"):
        return mix(tokens + images)
