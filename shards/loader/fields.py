"""The tensors of a batch: one table that the block of memory, collating, Batch and the model follow.

A new tensor is a new attribute of BatchFields; `collate` says what is in it.

Shapes: B sequences of this rank, T tokens of each, N tiles (an image without tiles is one), P tiles with pixels (N, or
0 with `decode="none"`), S the tile's side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Generic, TypeVar, get_type_hints

import numpy as np

IGNORE = -100

ArrayT = TypeVar("ArrayT")
"""NumPy arrays or torch tensors"""


@dataclass(frozen=True, slots=True)
class TensorField:
    """A row of the table."""

    dtype: type[np.generic]
    shape: tuple[str | int, ...]
    """Symbols of the module's text, or numbers"""
    padding: int | None = None
    """What fills the tokens after a sequence's samples; None for a tensor that has no tokens"""
    memory_order: tuple[int, ...] | None = None
    """The axes of `shape` in the order in which they are in memory; None: the same order"""

    axes: tuple[int, ...] = field(init=False)
    """What turns an array as it is in memory into one of `shape`"""

    def __post_init__(self) -> None:
        order = self.memory_order or range(len(self.shape))
        object.__setattr__(self, "axes", tuple(order.index(axis) for axis in range(len(self.shape))))

    def memory_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape in memory; sizes: symbol -> size."""
        shape = [sizes[size] if isinstance(size, str) else size for size in self.shape]
        return tuple(shape[axis] for axis in self.memory_order or range(len(shape)))


@dataclass(slots=True, kw_only=True)
class BatchFields(Generic[ArrayT]):
    """The tensors of a batch."""

    input_ids: Annotated[ArrayT, TensorField(np.int64, ("B", "T"), padding=0)]
    """token ids; each tile of an image fills image_tokens elements with the placeholder's id"""
    labels: Annotated[ArrayT, TensorField(np.int64, ("B", "T"), padding=IGNORE)]
    """the token's own id where it is trained, else -100; not shifted. The first token of a sample is never trained"""
    position_ids: Annotated[ArrayT, TensorField(np.int64, ("B", "T"), padding=0)]
    """index of the token in its record, from 0: in a branch it continues from the end of the common beginning"""
    segment_ids: Annotated[ArrayT, TensorField(np.int32, ("B", "T"), padding=0)]
    """1, 2, ... for the samples of a sequence, 0 for padding"""
    branch_ids: Annotated[ArrayT, TensorField(np.int32, ("B", "T"), padding=0)]
    """1, 2, ... for the branches of a sample of several records, 0 for their common beginning and everything else"""
    images: Annotated[ArrayT, TensorField(np.uint8, ("P", 3, "S", "S"), memory_order=(0, 2, 3, 1))]
    """RGB pixels, channels-last in memory"""
    image_slots: Annotated[ArrayT, TensorField(np.int64, ("N", 2))]
    """sequence and first token index of each tile, in the order of sequences, samples, placeholders and tiles"""

    def tensors(self) -> dict[str, ArrayT]:
        """Name -> tensor, as the model takes them."""
        return {name: getattr(self, name) for name in FIELDS}


FIELDS: Mapping[str, TensorField] = {
    name: annotation.__metadata__[0] for name, annotation in get_type_hints(BatchFields, include_extras=True).items()
}
