"""A batch as the model takes it; shapes as in shards.loader.fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from shards.images.tiles import ONE_TILE, Grid
from shards.loader.fields import FIELDS, BatchFields
from shards.loader.layout import Contents, Memory

_DTYPES = {name: torch.from_numpy(np.empty(0, field.dtype)).dtype for name, field in FIELDS.items()}


@dataclass(slots=True, kw_only=True)
class Batch(BatchFields[torch.Tensor]):
    """One rank's part of a global batch. docs/reading.md lists its tensors, which shards.loader.fields declares."""

    stored_images: tuple[memoryview, ...]
    """With `decode="none"` the images' files as they are stored, else empty"""
    grids: tuple[Grid, ...]
    """Of each image: how many tiles it has, and what to fit a stored image to"""
    samples: tuple[tuple[tuple[str, str], ...], ...]
    """For each sequence and each of its segments: (dataset, key)"""
    cursor: int
    """The loader's cursor after this batch"""

    @classmethod
    def of(cls, contents: Contents, memory: Memory) -> Batch:
        """Views of a block of memory: it stays as it is while any of them is there."""
        whole = torch.from_numpy(memory)
        tensors = {
            name: whole[start:end].view(_DTYPES[name]).view(shape).permute(FIELDS[name].axes)
            for name, ((start, end), shape) in contents.places().items()
        }
        # Views of the array: a tensor's memory moves if it is shared with another process.
        stored = contents.stored_bytes(memory).data
        sizes = contents.stored_sizes or ()
        starts = accumulate(sizes, initial=0)
        return cls(
            **tensors,
            stored_images=tuple(stored[start : start + size] for start, size in zip(starts, sizes, strict=False)),
            grids=(ONE_TILE,) * contents.num_tiles if contents.grids is None else contents.grids,
            samples=contents.samples,
            cursor=contents.cursor,
        )

    @property
    def num_records(self) -> int:
        """Its samples, each branch counted as one. From the second on, a branch begins where the numbers rise."""
        rises = (self.branch_ids[:, 1:] > self.branch_ids[:, :-1]) & (self.branch_ids[:, 1:] > 1)
        return sum(map(len, self.samples)) + int(rises.sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch there; from pinned memory non-blocking: do not modify the source until the copy completes."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))

    def pin_memory(self) -> Batch:
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)


def normalize(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """(images / 255 - mean) / std by channel, where the images are. uint8 [N, 3, S, S] -> dtype, the same shape."""
    means, stds = (
        torch.tensor(values, device=images.device, dtype=torch.float32).view(1, 3, 1, 1) for values in (mean, std)
    )
    return images.to(torch.float32).sub_(means * 255).div_(stds * 255).to(dtype)
