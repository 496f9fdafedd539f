"""Samples with equally many records in shards: which are common, and how far they may be ahead of others."""

from __future__ import annotations

import numpy as np
import pytest

from shards.sampling.record_draws import common_records, spread_of_shards, table_of


def test_common_numbers_of_records_have_nineteen_of_twenty_samples() -> None:
    assert common_records({1: 10, 2: 900, 3: 60, 7: 30}) == [2, 3]
    assert common_records({1: 5, 2: 5}) == [1, 2]
    assert common_records({4: 1}) == [4]


def test_a_table_has_a_row_for_each_shard() -> None:
    assert table_of([(3,), (1, 0, 2)]).tolist() == [[3, 0, 0], [1, 0, 2]]


def test_shards_that_are_all_alike_have_no_spread() -> None:
    assert spread_of_shards(table_of([(3, 5)] * 50), [0, 1], deviations=2) == 0
    assert spread_of_shards(table_of([(8,), (6,)] * 50), [0], deviations=2) == 0


@pytest.mark.parametrize(("shards", "samples"), [(30, 12), (100, 48), (400, 6)])
def test_the_spread_covers_how_far_samples_are_ahead_in_shuffled_shards(shards: int, samples: int) -> None:
    """The oracle shuffles the shards, and finds at each the place of the numbers of records in their own draws."""
    random = np.random.default_rng(shards)
    table = random.multinomial(samples, [0.4, 0.3, 0.3], size=shards)
    spread = spread_of_shards(table, [0, 1, 2], deviations=2)
    distances = []
    for _ in range(200):
        own = table[random.permutation(shards)].cumsum(0)
        places = shards * own / own[-1]
        distances.append((places.max(1) - places.min(1)).max())
    assert np.quantile(distances, 0.8) <= spread <= 2 * np.quantile(distances, 0.8)
