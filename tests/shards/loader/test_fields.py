"""The table of a batch's tensors is what batches are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from shards.loader import Batch
from shards.loader.fields import FIELDS
from shards.loader.layout import Contents
from tests.support.loader_builds import SIDE, compiled, some

CONTENTS = Contents(shape=(2, 7), side=3, num_tiles=4, grids=None, stored_sizes=None, samples=((), ()), cursor=9)


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Batch]:
    build = compiled(tmp_path_factory.mktemp("fields"), store="resized")
    return {decode: some(build, 1, decode=decode)[0] for decode in ("exact", "none")}


@pytest.mark.parametrize("decode", ["exact", "none"])
@pytest.mark.parametrize("name", FIELDS)
def test_every_tensor_has_the_type_and_the_shape_of_the_table(
    batches: dict[str, Batch], name: str, decode: str
) -> None:
    batch, field = batches[decode], FIELDS[name]
    num_images = len(batch.image_slots)
    assert num_images
    sizes = dict(
        zip("BTNPS", (*batch.input_ids.shape, num_images, num_images * (decode == "exact"), SIDE), strict=True)
    )
    tensor = batch.tensors()[name]
    assert tensor is getattr(batch, name)
    assert str(tensor.dtype) == f"torch.{field.dtype.__name__}"
    assert tuple(tensor.shape) == tuple(sizes[size] if isinstance(size, str) else size for size in field.shape)
    assert tensor.permute(field.memory_order or tuple(range(tensor.ndim))).is_contiguous()


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.padding is not None])
def test_what_belongs_to_no_sample_holds_the_padding_of_the_table(batches: dict[str, Batch], name: str) -> None:
    batch = batches["exact"]
    padded = batch.segment_ids == 0
    assert padded.any()
    assert {*batch.tensors()[name][padded].tolist()} == {FIELDS[name].padding}


def filled() -> Iterator[tuple[str, Any, np.ndarray]]:
    """A block of memory whose bytes all differ from their neighbours, as arrays and as a batch."""
    memory = (np.arange(CONTENTS.size) * 7 % 251).astype(np.uint8)
    arrays, batch = CONTENTS.arrays(memory), Batch.of(CONTENTS, memory)
    return ((name, getattr(arrays, name), getattr(batch, name).numpy()) for name in FIELDS)


def test_arrays_and_tensors_are_views_of_the_same_bytes_in_the_same_shape() -> None:
    for name, array, tensor in filled():
        assert array.size > 0, name
        assert array.dtype == tensor.dtype, name
        assert np.array_equal(array, tensor), name


def test_tensors_lie_one_after_the_other_each_aligned_for_every_type() -> None:
    ranges = [place.bytes for place in CONTENTS.places().values()]
    assert all(first.end <= second.start for first, second in pairwise([*ranges, CONTENTS.stored]))
    assert all(start % 64 == 0 for start, _ in ranges)


def test_a_change_of_all_tensors_leaves_the_rest_of_a_batch_alone(batches: dict[str, Batch]) -> None:
    batch = batches["none"]
    moved = batch.to("cpu")
    assert all(torch.equal(moved.tensors()[name], batch.tensors()[name]) for name in FIELDS)
    rest = [field.name for field in dataclasses.fields(Batch) if field.name not in FIELDS]
    assert [getattr(moved, name) for name in rest] == [getattr(batch, name) for name in rest]
