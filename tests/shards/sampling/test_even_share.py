"""A part of a split that stands for all of its datasets."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.sampling.even_share import even_order, even_share
from shards.sampling.permutation import Indices

SIZES = st.lists(st.integers(0, 60), min_size=1, max_size=9)


def counts_of(samples: Indices, sizes: list[int]) -> list[int]:
    """How many of the samples each dataset has."""
    borders = pairwise(np.cumsum([0, *sizes]))
    return [int(((samples >= start) & (samples < end)).sum()) for start, end in borders]


def in_pairs(samples: Indices) -> int:
    return -(-len(samples) // 2)


@given(SIZES, st.integers(0, 3))
def test_the_order_has_every_sample_once_and_is_the_same_each_time(sizes: list[int], key: int) -> None:
    order = even_order(sizes, key)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    assert order.tolist() == even_order(sizes, key).tolist()


@given(SIZES)
def test_every_beginning_has_of_each_dataset_its_share_and_at_least_one(sizes: list[int]) -> None:
    order, filled = even_order(sizes, "key"), sum(size > 0 for size in sizes)
    for length in range(max(filled, 1), sum(sizes) + 1):
        got = counts_of(order[:length], sizes)
        assert all(count >= (size > 0) for count, size in zip(got, sizes, strict=True))
        exact = [size * length / sum(sizes) for size in sizes]
        # a sample that a small dataset has too early is missing elsewhere, so the error grows with their number
        assert all(abs(count - share) <= filled for count, share in zip(got, exact, strict=True))


@given(st.integers(1, 12), st.integers(1, 30), st.data())
def test_datasets_of_one_size_have_equal_shares(datasets: int, size: int, data: st.DataObject) -> None:
    rounds = data.draw(st.integers(1, size))
    order = even_order([size] * datasets, "key")
    assert counts_of(order[: rounds * datasets], [size] * datasets) == [rounds] * datasets


def test_if_not_every_dataset_fits_the_largest_are_taken() -> None:
    assert counts_of(even_order([5, 900, 40, 7], "key")[:2], [5, 900, 40, 7]) == [0, 1, 1, 0]


def test_samples_of_a_dataset_are_not_its_first_ones() -> None:
    assert even_order([1000], "key")[:20].max() > 500


@pytest.mark.parametrize("count", [len, in_pairs], ids=["one each", "two each"])
@pytest.mark.parametrize("most", [1, 2, 7, 16, 400, 799, 800, 2000])
def test_a_share_is_the_longest_beginning_that_fits(count: Callable[[Indices], int], most: int) -> None:
    order = even_order([100] * 8, "key")
    share = even_share(order, count, most)
    assert share.tolist() == sorted(order[: len(share)].tolist())
    assert count(share) <= most
    assert len(share) == len(order) or count(order[: len(share) + 1]) > most


def test_a_small_share_of_a_large_split_is_found_without_packing_it_all() -> None:
    seen: list[int] = []

    def count(samples: Indices) -> int:
        seen.append(len(samples))
        return in_pairs(samples)

    assert len(even_share(even_order([1_000_000], "key"), count, 10)) == 20
    assert max(seen) < 100


def test_an_empty_split_has_an_empty_share() -> None:
    assert even_share(even_order([0, 0], "key"), len, 4).tolist() == []
