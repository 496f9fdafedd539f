"""Where a batch's arrays are in one block of memory, so that a worker sends nothing but what is in it.

Shapes as in shards.loader.fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shards.loader.fields import FIELDS, BatchFields, TensorField

Memory = npt.NDArray[np.uint8]
"""uint8 [bytes]"""

_ALIGNED = 64


class ByteRange(NamedTuple):
    """Bytes [start, end) of a block of memory."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Contents:
    """A batch without its arrays."""

    shape: tuple[int, int]
    """B, T"""
    side: int
    num_images: int
    stored_sizes: tuple[int, ...]
    """Bytes of each image's file, if images stay as they are stored"""
    samples: tuple[tuple[tuple[str, str], ...], ...]
    """For each sequence and each of its segments: (dataset, key)"""
    cursor: int
    """The loader's cursor after this batch"""

    @property
    def sizes(self) -> dict[str, int]:
        """Symbol -> size."""
        num_sequences, length = self.shape
        with_pixels = self.num_images - len(self.stored_sizes)
        return {"B": num_sequences, "T": length, "N": self.num_images, "P": with_pixels, "S": self.side}

    def ranges(self) -> Iterator[tuple[str, TensorField, ByteRange]]:
        """Where each tensor is."""
        start = 0
        for name, field in FIELDS.items():
            end = start + math.prod(field.memory_shape(self.sizes)) * np.dtype(field.dtype).itemsize
            yield name, field, ByteRange(start, end)
            start = -(-end // _ALIGNED) * _ALIGNED

    @property
    def stored(self) -> ByteRange:
        """Where the images' files are, after all tensors."""
        start = max(end for _, _, (_, end) in self.ranges())
        return ByteRange(start, start + sum(self.stored_sizes))

    @property
    def size(self) -> int:
        """Bytes of the block."""
        return self.stored.end

    def arrays(self, memory: Memory) -> BatchFields[npt.NDArray[np.generic]]:
        """Views of a block."""
        return BatchFields(
            **{
                name: memory[start:end].view(field.dtype).reshape(field.memory_shape(self.sizes)).transpose(field.axes)
                for name, field, (start, end) in self.ranges()
            }
        )

    def stored_bytes(self, memory: Memory) -> Memory:
        """The images' files, one after the other: a view of a block."""
        return memory[slice(*self.stored)]
