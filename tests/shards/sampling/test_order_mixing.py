"""How an order mixes: datasets evenly, shards of a window one after the other, and all in little memory."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import groupby
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shards.sampling import order
from shards.sampling.dataset_draws import Draws
from shards.sampling.order import Order

# Mixing


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=6).filter(any))
@example([1, 1, 1, 1, 1, 5000])
@example([2500, 2500])
@example([7] * 20)
def test_every_dataset_comes_evenly_over_the_epoch(draws: list[int]) -> None:
    """Before a border of stripes a dataset is at most (1 + share (D - 2)) / 2 draws from its share, of D datasets.

    Why: draws before a border are share x threshold rounded to the nearest, and the roundings of all sum to nothing.
    """
    stripe = 64
    sources = [Draws(f"d{number}", (max(1, count),), count) for number, count in enumerate(draws)]
    borders = np.cumsum([0, *(max(1, count) for count in draws)])
    drawing = sum(count > 0 for count in draws)
    with mock.patch.object(order, "STRIPE", stripe):
        drawn = Order(sources, key=0)
        datasets = borders.searchsorted(drawn.samples(0, 0, len(drawn)), side="right") - 1
        for number, count in enumerate(draws):
            before = np.concatenate([[0], np.cumsum(datasets == number)])
            share = count / sum(draws)
            bound = (1 + share * (drawing - 2)) / 2
            places = np.arange(0, len(drawn), stripe)
            assert np.abs(before[places] - places * share).max() <= bound + 1e-9
            from_to = before[places][None, :] - before[places][:, None]
            expected = (places[None, :] - places[:, None]) * share
            assert np.abs(from_to - expected).max() <= 2 * bound + 1e-9


def test_with_real_stripes_every_1024_positions_hold_a_datasets_share_give_or_take_one() -> None:
    sources = [
        Draws("half", (9000,), 9000),
        Draws("third", (6000,), 6000),
        Draws("sixth", (500,), 3000),
    ]
    samples = Order(sources, key=5).samples(0, 0, 18_000)
    for start in range(0, 17 * 1024, 1024):
        stripe = samples[start : start + 1024]
        counts = [np.count_nonzero(stripe < 9000), np.count_nonzero((stripe >= 9000) & (stripe < 15_000))]
        assert abs(counts[0] - 1024 / 2) <= 1.5
        assert abs(counts[1] - 1024 / 3) <= 1.5


def test_the_mix_does_not_follow_the_ranks() -> None:
    """Two halves that took turns would give each of two ranks one dataset alone."""
    order = Order([Draws("a", (20_000,), 20_000), Draws("b", (20_000,), 20_000)], key=0)
    turns = order.samples(0, 0, len(order)) >= 20_000
    for world_size in (2, 3, 4, 8, 64):
        for rank in range(world_size):
            mine = turns[rank::world_size]
            assert mine.mean() == pytest.approx(0.5, abs=4.5 * 0.5 / len(mine) ** 0.5)
    for lag in (1, 2, 3, 4, 8, 1024):
        assert abs(np.corrcoef(turns[:-lag], turns[lag:])[0, 1]) < 0.03


# Shards


@pytest.mark.parametrize("window", [1, 16, 40, 200])
@pytest.mark.parametrize("draws", [900, 600, 2000])
def test_with_a_window_a_shard_is_read_in_one_stretch_of_a_cycle(window: int, draws: int) -> None:
    """A run of draws within one cycle and one epoch reads a part of b samples within b + 2 (window - 1) positions."""
    blocks = (100, 37, 63, 100, 1, 99, 100, 100, 150, 150)
    shard_of = [shard for shard, size in enumerate(blocks) for _ in range(size)]
    order = Order([Draws("one", blocks, draws)], key=2, window=window)
    run = [(number // 900, number // draws, shard_of[order.sample_at(number)]) for number in range(3 * draws)]
    starts = []
    for _, piece in groupby(run, key=lambda drawn: drawn[:2]):
        shards_there = [shard for _, _, shard in piece]
        starts.append(shards_there[0])
        for shard, count in Counter(shards_there).items():
            first = shards_there.index(shard)
            last = len(shards_there) - 1 - shards_there[::-1].index(shard)
            assert last - first + 1 <= count + 2 * (window - 1)
    assert len(set(starts)) > 1


@pytest.mark.parametrize("window", [1, 50, 128])
def test_with_a_window_a_stretch_of_draws_touches_few_shards(window: int) -> None:
    """n draws are within n + 2 (window - 1) places of the order of shards, so they touch few shards."""
    shards_of_hundred, length = 100, 200
    order = Order([Draws("one", (100,) * shards_of_hundred, 10_000)], key=2, window=window)
    touched_shards = order.samples(0, 0, 10_000) // 100
    most = (length + 2 * (window - 1) - 2) // 100 + 2
    for start in range(10_000 - length):
        assert len(np.unique(touched_shards[start : start + length])) <= most
    everywhere = Order([Draws("one", (100,) * shards_of_hundred, 10_000)], key=2).samples(0, 0, length) // 100
    assert len(np.unique(everywhere)) > 4 * most, "without a window they lie all over"


# Memory


@pytest.mark.parametrize("window", [None, 4096])
def test_one_position_of_an_order_over_many_millions_takes_little_memory(window: int | None) -> None:
    blocks = (1_000_000,) * 40
    tracemalloc.start()
    order = Order([Draws("one", blocks, 40_000_000), Draws("two", blocks, 90_000_000)], key=1, window=window)
    samples = [order.sample_at(position) for position in (0, 77_000_000, 129_999_999, 10**12)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(0 <= sample < 80_000_000 for sample in samples)
    assert peak < 5_000_000
