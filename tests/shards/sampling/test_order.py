"""The order of a run: exact shares, nobody before their turn, the same everywhere."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shards import ShardError
from shards.sampling import order
from shards.sampling.dataset_draws import Draws
from shards.sampling.order import STRIPE, Order
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
        "import json\nfrom shards.sampling.dataset_draws import Draws\nfrom shards.sampling.order import Order\n"
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
