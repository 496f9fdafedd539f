"""The order of a run: exact shares, nobody before their turn, the same everywhere, in no memory."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, groupby
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shards import ShardError
from shards.sampling import order
from shards.sampling.order import STRIPE, Draws, Order
from tests.support import oracles_order
from tests.support.orders import EPOCHS, WINDOWS, blends, whole_epochs
from tests.support.paths import ROOT

STRIPES = st.sampled_from([1, 2, 3, 7, 16, STRIPE])
KEYS = st.integers(0, 1000)


def dataset_of(sources: Sequence[Draws], sample: int) -> int:
    ends = list(accumulate(sum(source.shard_sizes) for source in sources))
    return next(number for number, end in enumerate(ends) if sample < end)


def twin(sources: Sequence[Draws], *, key: object, window: int | None, count: int, stripe: int) -> list[list[int]]:
    plain = [(source.name, source.shard_sizes, source.count) for source in sources]
    return oracles_order.epochs_of(plain, key=key, window=window, count=count, stripe=stripe)


# The definition


@given(blends(), KEYS, WINDOWS, STRIPES)
def test_the_order_equals_the_one_made_of_lists(
    sources: list[Draws], key: int, window: int | None, stripe: int
) -> None:
    with mock.patch.object(order, "STRIPE", stripe):
        drawn = Order(sources, key=key, window=window)
        assert whole_epochs(drawn) == twin(sources, key=key, window=window, count=EPOCHS, stripe=stripe)


@pytest.mark.parametrize("window", [None, 100])
def test_an_order_of_many_stripes_equals_the_one_made_of_lists(window: int | None) -> None:
    sources = [
        Draws("big", (3000, 2500), 4096),
        Draws("small", (70,), 1000),
        Draws("cut", (900,), 13),
    ]
    order = Order(sources, key=("manifest", 3), window=window)
    assert whole_epochs(order, 3) == twin(sources, key=("manifest", 3), window=window, count=3, stripe=1024)


def test_the_order_is_the_same_in_every_release() -> None:
    """Whoever changes these numbers changes the order of every run that was ever saved."""
    sources = [Draws("alpha", (5, 3), 12), Draws("beta", (4,), 2)]
    assert whole_epochs(Order(sources, key=("manifest", 1)), 2) == [
        [2, 4, 1, 11, 5, 7, 3, 0, 6, 3, 2, 10, 6, 1],
        [0, 7, 9, 5, 4, 3, 7, 2, 4, 5, 1, 8, 6, 0],
    ]
    assert whole_epochs(Order(sources, key=("manifest", 1), window=3), 2) == [
        [6, 7, 5, 9, 2, 1, 0, 4, 3, 2, 0, 8, 1, 3],
        [6, 5, 10, 4, 7, 6, 7, 5, 0, 2, 1, 11, 4, 3],
    ]
    assert STRIPE == 1024


# Shares


@given(blends(), KEYS, WINDOWS, STRIPES)
def test_every_epoch_draws_as_often_as_asked_and_every_sample_as_often_as_its_neighbours(
    sources: list[Draws], key: int, window: int | None, stripe: int
) -> None:
    with mock.patch.object(order, "STRIPE", stripe):
        drawn = Order(sources, key=key, window=window)
        assert len(drawn) == sum(source.count for source in sources)
        for samples in whole_epochs(drawn):
            seen = Counter(samples)
            start = 0
            for source in sources:
                size = sum(source.shard_sizes)
                times = [seen.pop(sample, 0) for sample in range(start, start + size)]
                assert sum(times) == source.count
                if size:
                    assert set(times) <= {source.count // size, math.ceil(source.count / size)}
                start += size
            assert not seen


@given(blends(), KEYS, WINDOWS)
@example([Draws("halves", (4, 6), 25)], 1, None)
@example([Draws("halves", (4, 6), 25)], 1, 3)
def test_no_sample_comes_again_before_every_other_of_its_dataset_came(
    sources: list[Draws], key: int, window: int | None
) -> None:
    seen: dict[int, Counter[int]] = {number: Counter() for number in range(len(sources))}
    for sample in (sample for epoch in whole_epochs(Order(sources, key=key, window=window)) for sample in epoch):
        dataset = dataset_of(sources, sample)
        times = seen[dataset]
        fewest = min(times.values()) if len(times) == sum(sources[dataset].shard_sizes) else 0
        assert times[sample] == fewest
        times[sample] += 1


def test_two_and_a_half_draws_are_two_or_three_in_an_epoch_and_five_in_two() -> None:
    first, second = whole_epochs(Order([Draws("one", (7, 3), 25)], key=0), 2)
    assert sorted(Counter(first).values()) == [2] * 5 + [3] * 5
    assert sorted(Counter(second).values()) == [2] * 5 + [3] * 5
    assert set(Counter(first + second).values()) == {5}


@pytest.mark.parametrize("window", [None, 8])
def test_no_two_epochs_are_alike(window: int | None) -> None:
    epochs = whole_epochs(Order([Draws("one", (20, 20), 40), Draws("two", (8,), 16)], key=0, window=window), 30)
    assert len({tuple(samples) for samples in epochs}) == 30
    assert len({tuple(sample for sample in samples if sample < 40) for samples in epochs}) == 30


def test_a_cut_dataset_shows_other_samples_in_the_next_epoch() -> None:
    epochs = whole_epochs(Order([Draws("one", (10, 10), 5)], key=0), 4)
    assert sorted(sample for samples in epochs for sample in samples) == list(range(20))


# Purity


@given(blends(), KEYS, WINDOWS, STRIPES, st.data())
def test_any_part_of_an_epoch_is_a_slice_of_the_whole(
    sources: list[Draws], key: int, window: int | None, stripe: int, data: st.DataObject
) -> None:
    with mock.patch.object(order, "STRIPE", stripe):
        whole = whole_epochs(Order(sources, key=key, window=window))
        found = Order(sources, key=key, window=window)
        draw = st.integers(0, len(found))
        for epoch, start, stop in data.draw(
            st.lists(st.tuples(st.integers(0, EPOCHS - 1), draw, draw), min_size=1, max_size=8)
        ):
            start, stop = sorted((start, stop))
            part = found.samples(epoch, start, stop)
            assert part.dtype == np.int64
            assert part.tolist() == whole[epoch][start:stop]


@pytest.mark.parametrize(("epoch", "start", "stop"), [(0, 0, 71), (0, -1, 3), (0, 5, 4), (-1, 0, 1)])
def test_positions_that_an_epoch_does_not_have_are_refused(epoch: int, start: int, stop: int) -> None:
    with pytest.raises(IndexError, match="an epoch has 0 to 70"):
        Order([Draws("one", (70,), 70)], key=1).samples(epoch, start, stop)


def test_an_order_is_not_a_sequence_that_a_loop_could_run_through_for_ever() -> None:
    with pytest.raises(TypeError):
        iter(Order([Draws("one", (70,), 70)], key=1))  # type: ignore[call-overload]


@pytest.mark.parametrize(("sources", "window"), [([Draws("none", (), 5)], None), ([Draws("one", (3,), 3)], 0)])
def test_draws_of_nothing_and_an_empty_window_are_refused(sources: list[Draws], window: int | None) -> None:
    with pytest.raises(ShardError, match=r"5 samples of none, which has none|window is 0; expected at least 1"):
        Order(sources, key=1, window=window)


@pytest.mark.parametrize("window", [None, 10])
def test_half_an_epoch_shows_other_halves_once_every_sample_was_seen(window: int | None) -> None:
    order = Order([Draws("one", (10,) * 10, 50)], key=1, window=window)
    halves = [frozenset(order.samples(epoch, 0, 50).tolist()) for epoch in range(8)]
    for epoch in range(0, 8, 2):
        assert halves[epoch] | halves[epoch + 1] == set(range(100))
    assert len(set(halves)) == 8


def test_parts_across_many_stripes_are_slices_of_the_whole() -> None:
    sources = [Draws("one", (4000,), 3000), Draws("two", (2000,), 2500)]
    whole = Order(sources, key=1).samples(1, 0, 5500)
    for start, stop in [(0, 0), (1023, 1025), (1024, 2048), (1, 5499), (5120, 5500), (3000, 3001), (4000, 5500)]:
        assert np.array_equal(Order(sources, key=1).samples(1, start, stop), whole[start:stop])


@given(blends(), KEYS, WINDOWS)
def test_a_position_of_the_endless_run_is_a_place_in_an_epoch(
    sources: list[Draws], key: int, window: int | None
) -> None:
    order = Order(sources, key=key, window=window)
    run = [sample for samples in whole_epochs(order, 2) for sample in samples]
    for position in {0, len(order) - 1, len(order), len(order) + len(order) // 2, len(run) - 1}:
        assert order.sample_at(position) == run[position]
        assert type(order.sample_at(position)) is int


def test_every_process_finds_the_same_order() -> None:
    code = (
        "import json\nfrom shards.sampling.order import Draws, Order\n"
        "sources = [Draws('a', (3, 40), 90), Draws('b', (5,), 2)]\n"
        "orders = [Order(sources, key=('hash', 7), window=window) for window in (None, 4)]\n"
        "print(json.dumps([order.samples(5, 0, 92).tolist() for order in orders]))"
    )
    sources = [Draws("a", (3, 40), 90), Draws("b", (5,), 2)]
    here = [Order(sources, key=("hash", 7), window=window).samples(5, 0, 92).tolist() for window in (None, 4)]
    for hash_seed in ("0", "12345"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT, env=environment
        )
        assert json.loads(done.stdout) == here


@pytest.mark.parametrize("window", [None, 8])
def test_another_seed_or_manifest_is_another_order(window: int | None) -> None:
    sources = [Draws("a", (50, 50), 100), Draws("b", (30,), 30)]
    keys = [("hash", 0), ("hash", 1), ("other", 0)]
    actual = [whole_epochs(Order(sources, key=key, window=window), 1)[0] for key in keys]
    assert len({tuple(samples) for samples in actual}) == 3
    turns = {tuple(sample >= 100 for sample in samples) for samples in actual}
    inside = {tuple(sample for sample in samples if sample < 100) for samples in actual}
    assert len(turns) == len(inside) == 3


def test_two_datasets_of_one_size_are_shuffled_differently() -> None:
    samples = Order([Draws("a", (50,), 50), Draws("b", (50,), 50)], key=0).samples(0, 0, 100).tolist()
    assert [one for one in samples if one < 50] != [one - 50 for one in samples if one >= 50]


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
