"""From the numbers of samples to a batch: what a loader's worker process does.

Rule: every array is written once, where it stays; in a worker that is shared memory, so that sending it copies nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, get_worker_info

from shards.batch import Batch
from shards.build import Build
from shards.collate import Arrays, collate
from shards.decode import DECODERS
from shards.errors import ShardError
from shards.pixels import Geometry, PictureError
from shards.rows import Row


@dataclass(frozen=True, slots=True)
class Part:
    """A rank's rows of one global batch, and the position after the batch."""

    rows: list[Row]
    length: int
    """Positions of every row"""
    position: int


class Reader(Dataset[Any]):
    """Makes batches: in this process or in a worker."""

    def __init__(self, build: Build, split: str, decode: str) -> None:
        content = build.manifest.content
        self._split = build[split]
        self._image_tokens = int(content["config"]["image_tokens"])
        self._image_id = int(content["tokenizer"]["image_id"])
        self._geometry = Geometry.of(content["config"]["image"])
        self._decode = decode

    def __getitem__(self, part: Part) -> Batch | str:
        """A batch, or the text of a ShardError: an error that crosses processes would lose its form."""
        try:
            return self._batch(part)
        except ShardError as error:
            return str(error)
        except MemoryError:
            return "loader: memory ran out while a batch was made; use fewer workers, or prefetch less"

    def _batch(self, part: Part) -> Batch:
        named = [[self._split.named(number) for number in row] for row in part.rows]
        rows = [[sample for _, sample in row] for row in named]
        stored = [
            (number, image)
            for numbers, row in zip(part.rows, rows, strict=True)
            for number, sample in zip(numbers, row, strict=True)
            for image in sample.images
        ]
        shape = (len(rows), part.length)
        tensors = {name: _empty(shape, torch.int64) for name in ("input_ids", "labels", "position_ids")}
        tensors["segment_ids"] = _empty(shape, torch.int32)
        tensors["image_slots"] = _empty((len(stored), 2), torch.int64)
        arrays = Arrays(**{name: tensor.numpy() for name, tensor in tensors.items()})
        collate(rows, arrays, image_id=self._image_id, image_tokens=self._image_tokens)
        raw = self._decode == "none"
        return Batch(
            **tensors,
            images=self._images([] if raw else stored),
            stored_images=tuple(bytes(image) for _, image in stored) if raw else (),
            samples=tuple(tuple((dataset, sample.key) for dataset, sample in row) for row in named),
            position=part.position,
        )

    def _images(self, stored: Sequence[tuple[int, memoryview]]) -> torch.Tensor:
        """Pixels of stored images, each with its sample's number."""
        side = self._geometry.size
        pixels = _empty((len(stored), side, side, 3), torch.uint8)
        for out, (number, image) in zip(pixels.numpy(), stored, strict=True):
            try:
                DECODERS[self._decode](image, self._geometry, out)
            except PictureError as error:
                raise ShardError(f"{self._split.where(number)}: an image cannot be decoded: {error}") from None
        return pixels.permute(0, 3, 1, 2)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor to be filled; in a worker it lies in shared memory from the start, so that sending it copies nothing."""
    if get_worker_info() is None or 0 in shape:
        return torch.empty(shape, dtype=dtype)
    size = math.prod(shape) * dtype.itemsize
    try:
        storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]  # as torch's default_collate
    except RuntimeError as error:
        raise ShardError(
            f"loader: no shared memory for {size:,} bytes of a batch ({error}); make /dev/shm bigger, use fewer "
            "workers, or prefetch less"
        ) from None
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)
