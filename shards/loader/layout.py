"""Where a batch's arrays are in one block of memory, so that a worker sends nothing but what is in it.

Shapes as in shards.loader.fields.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shards.images.tiles import Grid
from shards.loader.fields import FIELDS, BatchFields

Memory = npt.NDArray[np.uint8]
"""uint8 [bytes]"""

_ALIGNED = 64


class ByteRange(NamedTuple):
    """Bytes [start, end) of a block of memory."""

    start: int
    end: int


class TensorPlace(NamedTuple):
    """Where a tensor is in a block, and its shape there."""

    bytes: ByteRange
    memory_shape: tuple[int, ...]


@lru_cache(maxsize=64)
def _places(num_sequences: int, length: int, num_tiles: int, with_pixels: int, side: int) -> dict[str, TensorPlace]:
    """B, T, N, P, S -> where each tensor is. Remembered, since every step of a batch's way asks for it."""
    sizes = {"B": num_sequences, "T": length, "N": num_tiles, "P": with_pixels, "S": side}
    places = {}
    start = 0
    for name, field in FIELDS.items():
        shape = field.memory_shape(sizes)
        end = start + math.prod(shape) * np.dtype(field.dtype).itemsize
        places[name] = TensorPlace(ByteRange(start, end), shape)
        start = -(-end // _ALIGNED) * _ALIGNED
    return places


@dataclass(frozen=True, slots=True)
class Contents:
    """A batch without its arrays."""

    shape: tuple[int, int]
    """B, T"""
    side: int
    num_tiles: int
    """Of all images; one for each in a build without tiles"""
    grids: tuple[Grid, ...] | None
    """Of each image; None in a build without tiles"""
    stored_sizes: tuple[int, ...] | None
    """Bytes of each image's file, if images stay as they are stored"""
    samples: tuple[tuple[tuple[str, str], ...], ...]
    """For each sequence and each of its segments: (dataset, key)"""
    cursor: int
    """The loader's cursor after this batch"""

    def places(self) -> dict[str, TensorPlace]:
        """Where each tensor is."""
        with_pixels = self.num_tiles if self.stored_sizes is None else 0
        return _places(*self.shape, self.num_tiles, with_pixels, self.side)

    @property
    def stored(self) -> ByteRange:
        """Where the images' files are, after all tensors."""
        start = max(place.bytes.end for place in self.places().values())
        return ByteRange(start, start + sum(self.stored_sizes or ()))

    @property
    def size(self) -> int:
        """Bytes of the block."""
        return self.stored.end

    def arrays(self, memory: Memory) -> BatchFields[npt.NDArray[np.generic]]:
        """Views of a block."""
        arrays = {}
        for name, ((start, end), shape) in self.places().items():
            field = FIELDS[name]
            arrays[name] = memory[start:end].view(field.dtype).reshape(shape).transpose(field.axes)
        return BatchFields(**arrays)

    def stored_bytes(self, memory: Memory) -> Memory:
        """The images' files, one after the other: a view of a block."""
        return memory[slice(*self.stored)]
