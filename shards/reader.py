"""From the numbers of samples to a batch: what a loader's worker process does.

Rule: every array is written once, where it stays; in a worker that is shared memory, so that sending it copies nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
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

_ALIGNED = 64


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
        raw = self._decode == "none"
        shape, side = (len(rows), part.length), self._geometry.size
        tensors = _empty(
            {
                "images": ((0 if raw else len(stored), side, side, 3), torch.uint8),
                "input_ids": (shape, torch.int64),
                "labels": (shape, torch.int64),
                "position_ids": (shape, torch.int64),
                "segment_ids": (shape, torch.int32),
                "image_slots": ((len(stored), 2), torch.int64),
            }
        )
        pixels = tensors.pop("images")
        arrays = Arrays(**{name: tensor.numpy() for name, tensor in tensors.items()})
        collate(rows, arrays, image_id=self._image_id, image_tokens=self._image_tokens)
        if not raw:
            self._fill(pixels, stored)
        return Batch(
            **tensors,
            images=pixels.permute(0, 3, 1, 2),
            stored_images=tuple(bytes(image) for _, image in stored) if raw else (),
            samples=tuple(tuple((dataset, sample.key) for dataset, sample in row) for row in named),
            position=part.position,
        )

    def _fill(self, pixels: torch.Tensor, stored: Sequence[tuple[int, memoryview]]) -> None:
        """pixels: uint8 [N, S, S, 3]. stored: images, each with its sample's number."""
        for out, (number, image) in zip(pixels.numpy(), stored, strict=True):
            try:
                DECODERS[self._decode](image, self._geometry, out)
            except PictureError as error:
                raise ShardError(f"{self._split.where(number)}: an image cannot be decoded: {error}") from None


def _empty(wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, torch.Tensor]:
    """Tensors to be filled, all in one block; in a worker in shared memory, so that sending them copies nothing."""
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in wanted.values()]
    starts = [0, *accumulate(-(-size // _ALIGNED) * _ALIGNED for size in sizes)]
    try:
        if get_worker_info() is None:
            block = torch.empty(starts[-1], dtype=torch.uint8)
        else:  # as torch's default_collate does it
            storage = torch.UntypedStorage._new_shared(starts[-1])  # type: ignore[no-untyped-call]
            block = torch.empty(0, dtype=torch.uint8).set_(storage)
    except RuntimeError as error:
        raise ShardError(
            f"loader: no memory for {starts[-1]:,} bytes of a batch ({error}); make /dev/shm bigger, use fewer "
            "workers, or prefetch less"
        ) from None
    return {
        name: block[start : start + size].view(dtype).view(shape)
        for (name, (shape, dtype)), start, size in zip(wanted.items(), starts, sizes, strict=False)
    }
