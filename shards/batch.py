"""A batch as the model takes it.

Shapes: B rows of this rank, T positions, N images of these rows, S the image's side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch


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
    stored_images: tuple[bytes, ...]
    """With `decode="none"` the images' files as they are stored, else empty"""
    image_slots: torch.Tensor
    """int64 [N, 2]: row and first position of each image"""
    samples: tuple[tuple[tuple[str, str], ...], ...]
    """For each row and each of its segments: (dataset, key)"""
    position: int
    """The loader's position after this batch"""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch there; from pinned memory to a GPU without waiting for it."""
        non_blocking = torch.device(device).type != "cpu"  # to the CPU, others could read what has not arrived
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._each(torch.Tensor.pin_memory)

    def __reduce__(self) -> tuple[Any, ...]:
        """Tensors that lie in one block of memory travel as that block: a worker then sends one file, not six."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        blocks = {tensor.untyped_storage().data_ptr() for tensor in tensors.values() if tensor.numel()}
        if len(blocks) != 1:
            return Batch, tuple(values.values())
        storage = next(tensor for tensor in tensors.values() if tensor.numel()).untyped_storage()
        places = {
            name: (tensor.dtype, tensor.storage_offset() if tensor.numel() else 0, tensor.shape, tensor.stride())
            for name, tensor in tensors.items()
        }
        rest = {name: value for name, value in values.items() if name not in tensors}
        return _from_block, (torch.empty(0, dtype=torch.uint8).set_(storage), places, rest)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        tensors: dict[str, Any] = {
            field.name: change(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **tensors)


def _from_block(block: torch.Tensor, places: Mapping[str, tuple[Any, ...]], rest: Mapping[str, Any]) -> Batch:
    tensors: dict[str, Any] = {
        name: torch.empty(0, dtype=dtype).set_(block.untyped_storage(), offset, shape, stride)
        for name, (dtype, offset, shape, stride) in places.items()
    }
    return Batch(**tensors, **rest)


def normalize(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """(images / 255 - mean) / std by channel, where the images are. uint8 [N, 3, S, S] -> dtype, the same shape."""
    means, stds = (
        torch.tensor(values, device=images.device, dtype=torch.float32).view(1, 3, 1, 1) for values in (mean, std)
    )
    return images.to(torch.float32).sub_(means * 255).div_(stds * 255).to(dtype)
