"""The order of a build: as often as its manifest says, and as it is stored."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import shards
from shards import ShardError
from shards.sampling.dataset_draws import Draws
from shards.sampling.order import Order, StoredOrder
from tests.support import handmade_builds
from tests.support.handmade_builds import draft
from tests.support.orders import whole_epochs


def test_the_stored_order_gives_every_sample_once_as_it_is_stored_in_every_epoch() -> None:
    order = StoredOrder(10)
    assert len(order) == 10
    for epoch in (0, 3):
        assert order.samples(epoch, 0, 10).tolist() == list(range(10))
        assert order.samples(epoch, 4, 7).tolist() == [4, 5, 6]
    assert order.samples(0, 0, 10).dtype == np.int64
    assert StoredOrder(0).samples(0, 0, 0).tolist() == []


@pytest.fixture
def build(tmp_path: Path) -> shards.Build:
    """alpha: 5 and 3 samples, drawn 12 times. beta: 4, drawn 2 times. One sample to evaluate."""
    made = handmade_builds.Handmade(tmp_path)
    made.add([draft(number) for number in range(5)])
    made.add([draft(number) for number in range(5, 8)])
    made.add([draft(number, split="eval") for number in range(3)], split="eval")
    made.add([draft(number, dataset="beta") for number in range(4)], dataset="beta")
    made.finish()
    return with_draws(made, {"alpha": 12, "beta": 2})


def with_draws(made: handmade_builds.Handmade, draws: dict[str, int]) -> shards.Build:
    made.draws = draws
    return shards.open(made.finish())


def test_a_build_draws_what_its_manifest_says(build: shards.Build) -> None:
    order = build.order(seed=1)
    sources = [Draws("alpha", (5, 3), 12), Draws("beta", (4,), 2)]
    assert len(order) == 14
    assert whole_epochs(order) == whole_epochs(Order(sources, key=(build.manifest.hash, 1)))
    by_shards = build.order("train", seed=1, window=3)
    assert whole_epochs(by_shards) == whole_epochs(Order(sources, key=(build.manifest.hash, 1), window=3))
    datasets = Counter(build["train"].named(sample)[0] for sample in whole_epochs(order)[0])
    assert datasets == {"alpha": 12, "beta": 2}
    assert whole_epochs(order) != whole_epochs(build.order(seed=2))
    assert whole_epochs(build.order()) == whole_epochs(build.order(seed=0))


def test_the_evaluation_split_is_drawn_once_whatever_the_blend_says(build: shards.Build) -> None:
    order = build.order("eval")
    assert len(order) == 3
    assert all(sorted(samples) == [0, 1, 2] for samples in whole_epochs(order))


def test_as_many_draws_as_samples_take_every_sample_once(tmp_path: Path) -> None:
    build = shards.open(handmade_builds.make(tmp_path).folder)
    assert sorted(whole_epochs(build.order())[0]) == list(range(11))


def test_a_split_with_nothing_to_draw_is_an_error_that_says_so(tmp_path: Path) -> None:
    made = handmade_builds.Handmade(tmp_path)
    made.add([draft(0)])
    build = with_draws(made, {"alpha": 0})
    for split in ("train", "eval"):
        with pytest.raises(ShardError, match=f"nothing to draw from the split {split}; see dsvl-prep stats"):
            build.order(split)


def test_an_order_of_an_unknown_split_is_an_error_that_names_the_splits(build: shards.Build) -> None:
    with pytest.raises(ShardError, match="no split 'test'; it has train, eval"):
        build.order("test")
