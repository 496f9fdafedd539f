"""A sample of a shard, as its reader gives it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from shards.errors import ShardError
from shards.format.branches import Branch, branches_of
from shards.images.tiles import ONE_TILE, Grid


class Sample:
    """One tokenized conversation, or several that share their beginning.

    ids, labels: int32 [T], labels -100 where nothing is trained. branch_ids: None, or in a sample of several records
    about the same images int32 [T]: 0 in their common beginning, then 1, 2, ... in the branch of each. images: the
    stored files' bytes in placeholder order. All are views of the sample's own bytes, which can not be written to.
    stated_grids: of each image; None in a build without tiles. shard: its file, for messages.
    """

    __slots__ = ("_metadata", "branch_ids", "ids", "images", "key", "labels", "shard", "stated_grids")

    def __init__(
        self,
        shard: str,
        key: str,
        metadata: memoryview,
        tokens: npt.NDArray[np.int32],
        images: Sequence[memoryview],
        *,
        grids: tuple[Grid, ...] | None = None,
    ) -> None:
        self.key = key
        self.ids, self.labels = tokens[:2]
        self.branch_ids = tokens[2] if len(tokens) > 2 else None
        self.images = tuple(images)
        self.stated_grids = grids
        self.shard, self._metadata = shard, metadata

    def __reduce__(self) -> tuple[Any, ...]:
        """With bytes of its own: views cannot be sent to another process."""
        tokens = np.stack([row for row in (self.ids, self.labels, self.branch_ids) if row is not None])
        images = [bytes(image) for image in self.images]
        return _received, (self.shard, self.key, bytes(self._metadata), tokens, images, self.stated_grids)

    @property
    def metadata(self) -> dict[str, Any]:
        """What FORMAT.md lists: id, dataset, sources, images. Raises ShardError if it is not a JSON object."""
        try:
            metadata = orjson.loads(self._metadata)
        except ValueError as error:
            raise ShardError(f"{self.shard}: the metadata of sample {self.key} cannot be read: {error}") from None
        if not isinstance(metadata, dict):
            raise ShardError(
                f"{self.shard}: the metadata of sample {self.key} is {type(metadata).__name__}; expected an object"
            )
        return metadata

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Of each image."""
        return (ONE_TILE,) * len(self.images) if self.stated_grids is None else self.stated_grids

    @property
    def tiles(self) -> int:
        """Of all its images: how many times the encoder sees a square for it."""
        return sum(grid.tiles for grid in self.grids)

    @property
    def branches(self) -> list[Branch]:
        """Which of its tokens each record has; one that has all of them if it is a sample without branches."""
        return branches_of(self.branch_ids, len(self.ids))

    @property
    def where(self) -> str:
        """Its shard and key, for messages."""
        return f"{self.shard}: sample {self.key}"

    def __repr__(self) -> str:
        return f"Sample({self.key!r}, {len(self.ids)} ids, {len(self.images)} images)"


def _received(
    shard: str,
    key: str,
    metadata: bytes,
    tokens: npt.NDArray[np.int32],
    images: Sequence[bytes],
    grids: tuple[Grid, ...] | None,
) -> Sample:
    tokens.flags.writeable = False
    return Sample(shard, key, memoryview(metadata), tokens, [memoryview(image) for image in images], grids=grids)
