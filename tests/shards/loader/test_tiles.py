"""Batches of builds with tiles, compared with a slow twin; packing by tiles; damaged grids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import orjson
import pyarrow as pa
import torch

import shards
from shards.errors import ShardError
from shards.format.index import SCHEMA
from shards.images.decode import decode_pillow
from shards.loader import Loader
from tests.support.small_blends import files_of
from tests.support.tiled_builds import IMAGE_TOKENS, SIDE, SIZES, tiled

LENGTH = 512


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> shards.Build:
    images = [[size] for size in SIZES] + [[], [(96, 64), (33, 31)]]
    return tiled(tmp_path_factory.mktemp("tiled"), images=images, image={"tiles_multi": 3})


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_tile_is_where_its_slot_says_and_the_rest_is_the_sample(
    build: shards.Build, packed: bool, workers: int
) -> None:
    loader = Loader(build, batch_size=2, max_length=LENGTH, packed=packed, epochs=1, workers=workers)
    image_id, geometry = build.manifest.tokenizer.image_id, build.manifest.config.image
    by_key = {sample.key: sample for sample in build["train"]}
    seen = set()
    for batch in loader:
        expected_tiles: list[Any] = []
        expected_slots: list[tuple[int, int]] = []
        for row, sequence in enumerate(batch.samples):
            ids: list[int] = []
            labels: list[int] = []
            for _, key in sequence:
                seen.add(key)
                sample, images = by_key[key], iter(range(99))
                start = len(labels)
                for token, label in zip(sample.ids.tolist(), sample.labels.tolist(), strict=True):
                    count = 1
                    if token == image_id:
                        number = next(images)
                        grid = sample.grids[number]
                        expected_tiles += list(decode_pillow(sample.images[number], geometry, grid))
                        expected_slots += [(row, len(ids) + tile * IMAGE_TOKENS) for tile in range(grid.tiles)]
                        count = grid.tiles * IMAGE_TOKENS
                    ids += [token] * count
                    labels += [label] * count
                labels[start] = -100
            assert batch.input_ids[row, : len(ids)].tolist() == ids
            assert batch.labels[row, : len(ids)].tolist() == labels
        assert batch.image_slots.tolist() == [list(slot) for slot in expected_slots]
        assert batch.images.shape == (len(expected_tiles), 3, SIDE, SIDE)
        if expected_tiles:
            assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), np.stack(expected_tiles))
        assert sum(grid.tiles for grid in batch.grids) == len(expected_tiles)
    assert seen == set(by_key)


def test_batches_of_stored_images_say_what_to_fit_each_to(build: shards.Build) -> None:
    whole = next(iter(Loader(build, batch_size=4, max_length=LENGTH)))
    stored = next(iter(Loader(build, batch_size=4, max_length=LENGTH, decode="none")))
    assert stored.images.shape[0] == 0
    assert len(stored.stored_images) == len(stored.grids) == len(whole.grids)
    assert torch.equal(stored.image_slots, whole.image_slots)
    geometry = build.manifest.config.image
    tiles = [decode_pillow(data, geometry, grid) for data, grid in zip(stored.stored_images, stored.grids, strict=True)]
    assert np.array_equal(np.concatenate(tiles), whole.images.permute(0, 2, 3, 1).numpy())


def test_max_images_bounds_the_tiles_of_a_sequence(build: shards.Build) -> None:
    for batch in Loader(build, batch_size=1, max_length=LENGTH, max_images=8, epochs=1):
        assert len(batch.images) <= 8
    with pytest.raises(ShardError, match="has 7 tiles, a sequence takes 6"):
        Loader(build, batch_size=1, max_length=LENGTH, max_images=6)


def test_a_resumed_loader_continues_with_the_same_tiles(build: shards.Build) -> None:
    def some(state: dict[str, Any] | None, count: int) -> tuple[list[torch.Tensor], dict[str, Any]]:
        loader = Loader(build, batch_size=2, max_length=LENGTH)
        if state:
            loader.load_state_dict(state)
        batches = iter(loader)
        return [next(batches).images for _ in range(count)], loader.state_dict()

    whole, _ = some(None, 6)
    first, state = some(None, 3)
    rest, _ = some(state, 3)
    assert all(torch.equal(one, other) for one, other in zip(whole, [*first, *rest], strict=True))


def test_an_index_and_metadata_that_disagree_are_found(tmp_path: Path) -> None:
    built = tiled(tmp_path, images=[[(96, 64)]])
    shard = next(iter(built.shards()))[2]
    table = shard.index.table
    assert table.schema.names == [*SCHEMA, "tiles"]
    tiles = table.column("tiles").to_pylist()
    assert tiles == [[7]]
    sample = shard[0]
    assert orjson.loads(orjson.dumps(sample.metadata))["images"][0]["columns"] == 3
    shard.index._tiles = (np.array([0, 1]).data, np.array([6], np.uint32).data)  # as a flipped bit would have it
    with pytest.raises(ShardError, match=r"has images of \[7\] tiles, its index says \[6\]"):
        shard[0]
    shard.index._tiles = (np.array([0, 9]).data, np.array([6], np.uint32).data)
    with pytest.raises(ShardError, match="a list of tiles is outside its column"):
        shard.tiles_of(np.array([0]))


def test_every_flipped_bit_of_an_index_with_tiles_is_found(tmp_path: Path) -> None:
    built = tiled(tmp_path, images=[[(96, 64)], [(30, 20)]])
    (path,) = [name for name in files_of(tmp_path / "build") if name.endswith(".arrow")]
    whole = (tmp_path / "build" / path).read_bytes()
    place = whole.rindex(pa.array([7, 7], pa.uint32()).buffers()[1].to_pybytes()[:8])
    for bit in range(64):
        damaged = bytearray(whole)
        damaged[place + bit // 8] ^= 1 << bit % 8
        (tmp_path / "build" / path).write_bytes(damaged)
        reopened = shards.open(built.store.location)
        with pytest.raises(ShardError):
            list(reopened["train"])
        assert shards.verify(reopened).problems
