"""A batch as the model takes it.

Shapes: B rows of this rank, T positions, N images of these rows, S the image's side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from shards.loader.layout import Contents, Memory

_TYPES: dict[type[np.generic], torch.dtype] = {
    np.uint8: torch.uint8,
    np.int32: torch.int32,
    np.int64: torch.int64,
}


@dataclass(slots=True)
class Batch:
    """One rank's part of a global batch."""

    input_ids: torch.Tensor
    """int64 [B, T]; an image's positions all hold the placeholder's id"""
    labels: torch.Tensor
    """int64 [B, T], -100 where nothing is learnt; not shifted"""
    position_ids: torch.Tensor
    """int64 [B, T], from 0 in each sample"""
    segment_ids: torch.Tensor
    """int32 [B, T]: 1, 2, ... for the samples of a row, 0 for padding"""
    images: torch.Tensor
    """uint8 [N, 3, S, S], RGB, in channels-last memory; none with `decode="none"`"""
    stored_images: tuple[memoryview, ...]
    """With `decode="none"` the images' files as they are stored, else empty"""
    image_slots: torch.Tensor
    """int64 [N, 2]: row and first position of each image"""
    samples: tuple[tuple[tuple[str, str], ...], ...]
    """For each row and each of its segments: (dataset, key)"""
    position: int
    """The loader's position after this batch"""

    @classmethod
    def of(cls, contents: Contents, memory: Memory) -> Batch:
        """Views of a block of memory: it stays as it is while any of them is there."""
        whole = torch.from_numpy(memory)
        tensors = {
            name: whole[start:end].view(_TYPES[kind]).view(shape) for name, start, end, kind, shape in contents.places()
        }
        del tensors["stored"]  # a view of the array: a tensor's memory moves if it is shared with another process
        stored = contents.arrays(memory)["stored"].data
        starts = accumulate(contents.stored_sizes, initial=0)
        return cls(
            images=tensors.pop("images").permute(0, 3, 1, 2),
            stored_images=tuple(
                stored[start : start + size] for start, size in zip(starts, contents.stored_sizes, strict=False)
            ),
            samples=contents.samples,
            position=contents.position,
            **tensors,
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch there; from pinned memory without waiting for it: no other stays as it is meanwhile."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))

    def pin_memory(self) -> Batch:
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        tensors: dict[str, Any] = {
            field.name: change(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **tensors)


def normalize(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """(images / 255 - mean) / std by channel, where the images are. uint8 [N, 3, S, S] -> dtype, the same shape."""
    means, stds = (
        torch.tensor(values, device=images.device, dtype=torch.float32).view(1, 3, 1, 1) for values in (mean, std)
    )
    return images.to(torch.float32).sub_(means * 255).div_(stds * 255).to(dtype)
