"""Where a batch's arrays lie in one block of memory, so that a worker sends nothing but what is in it.

Shapes: B rows, T positions a row, N images in all, S their side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Memory = npt.NDArray[np.uint8]
"""uint8 [bytes]"""

_ALIGNED = 64


@dataclass(frozen=True, slots=True)
class Contents:
    """A batch, but for its arrays."""

    shape: tuple[int, int]
    """B, T"""
    side: int
    num_images: int
    stored_sizes: tuple[int, ...]
    """Bytes of each image's file, if images stay as they are stored"""
    samples: tuple[tuple[tuple[str, str], ...], ...]
    """For each row and each of its segments: (dataset, key)"""
    position: int
    """The loader's position after this batch"""

    def places(self) -> Iterator[tuple[str, int, int, type[np.generic], tuple[int, ...]]]:
        """Name, start and end in bytes, type and shape of each array."""
        pictures = self.num_images - len(self.stored_sizes)
        wanted: tuple[tuple[str, type[np.generic], tuple[int, ...]], ...] = (
            ("images", np.uint8, (pictures, self.side, self.side, 3)),
            ("input_ids", np.int64, self.shape),
            ("labels", np.int64, self.shape),
            ("position_ids", np.int64, self.shape),
            ("segment_ids", np.int32, self.shape),
            ("image_slots", np.int64, (self.num_images, 2)),
            ("stored", np.uint8, (sum(self.stored_sizes),)),
        )
        start = 0
        for name, kind, shape in wanted:
            end = start + math.prod(shape) * np.dtype(kind).itemsize
            yield name, start, end, kind, shape
            start = -(-end // _ALIGNED) * _ALIGNED

    @property
    def size(self) -> int:
        """Bytes of the block."""
        return max(end for _, _, end, _, _ in self.places())

    def arrays(self, memory: Memory) -> dict[str, npt.NDArray[np.generic]]:
        """Views of a block."""
        return {name: memory[start:end].view(kind).reshape(shape) for name, start, end, kind, shape in self.places()}
