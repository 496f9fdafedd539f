"""The search for close hashes finds exactly the pairs that comparing all of them finds."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.dedupe import near_search
from preprocess.dedupe.near_search import near_components, near_matches, near_pairs, popcount, swar_popcount
from tests.support.oracles import components

Words = npt.NDArray[np.uint64]


@pytest.fixture(params=["bands", "bands and parts", "bands and a table"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method on few hashes; the small blocks make runs of equal keys span several."""
    monkeypatch.setattr(near_search, "_FEW", 0 if request.param == "bands and parts" else 1000)
    monkeypatch.setattr(near_search, "_TABLE_HASHES", 0 if request.param == "bands and a table" else 1000)
    monkeypatch.setattr(near_search, "_BLOCK_ROWS", 3)
    monkeypatch.setattr(near_search, "_BLOCK_PAIRS", 5)
    monkeypatch.setattr(near_search, "_KEPT_PAIRS", 2)


def to_words(value: int) -> list[int]:
    return [value >> 64 * word & 2**64 - 1 for word in range(4)]


def distance(left: list[int], right: list[int]) -> int:
    return sum((one ^ other).bit_count() for one, other in zip(left, right, strict=True))


@st.composite
def hashes(draw: st.DrawFn) -> list[list[int]]:
    """A few random hashes, and copies of them with up to 40 bits flipped, often within one band."""
    values = draw(st.lists(st.integers(0, 2**256 - 1), min_size=1, max_size=4))
    for _ in range(draw(st.integers(0, 12))):
        value = draw(st.sampled_from(values))
        start, width = draw(st.sampled_from([(0, 256), (0, 16), (100, 40), (240, 16)]))
        for bit in draw(st.sets(st.integers(start, start + width - 1), max_size=40)):
            value ^= 1 << bit
        values.append(value)
    return [to_words(value) for value in values]


def as_array(rows: list[list[int]]) -> Words:
    return np.array(rows, dtype=np.uint64).reshape(-1, 4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=hashes(), limit=st.sampled_from([0, 1, 7, 30, 31]))
def test_it_finds_each_pair_within_the_distance_once(method: None, rows: list[list[int]], limit: int) -> None:
    rows = [list(row) for row in sorted({tuple(row) for row in rows})]
    pairs = [
        (left, right)
        for batch in near_pairs(as_array(rows), limit, threads=2)
        for left, right in zip(*(part.tolist() for part in batch), strict=True)
    ]
    assert sorted(pairs) == [
        (left, right) for left, right in combinations(range(len(rows)), 2) if distance(rows[left], rows[right]) <= limit
    ]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=hashes(), limit=st.sampled_from([0, 15, 31]))
def test_components_join_all_rows_that_are_connected_by_pairs(method: None, rows: list[list[int]], limit: int) -> None:
    near = [
        [one, other]
        for one in range(len(rows))
        for other in range(one, len(rows))
        if distance(rows[one], rows[other]) <= limit
    ]
    whole = components(near)
    assert near_components(as_array(rows), limit).tolist() == [min(whole[row]) for row in range(len(rows))]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=hashes(), cut=st.floats(0, 1), limit=st.sampled_from([0, 15, 31]))
def test_a_query_gets_the_first_of_the_closest_known_hashes(
    method: None, rows: list[list[int]], cut: float, limit: int
) -> None:
    known, queries = rows[: int(cut * len(rows))], rows[int(cut * len(rows)) :]
    expected = []
    for query in queries:
        close = [(distance(query, other), row) for row, other in enumerate(known) if distance(query, other) <= limit]
        expected.append(min(close)[1] if close else -1)
    assert near_matches(as_array(queries), as_array(known), limit).tolist() == expected


def test_no_hashes_are_fine() -> None:
    assert near_components(as_array([]), 31).tolist() == []
    assert near_matches(as_array([]), as_array([]), 31).tolist() == []


def test_a_thousand_hashes_with_a_quarter_of_their_bits_in_common_are_compared_in_blocks() -> None:
    random = np.random.default_rng(0)
    words = random.integers(0, 2**64, (1000, 4), dtype=np.uint64)
    words[:, 0] = 7  # one key in each of the first four bands
    words[999] = words[0] ^ np.uint64(1 << 63)
    label = near_components(words, 31)
    assert np.flatnonzero(label != np.arange(1000)).tolist() == [999]
    assert label[999] == 0


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_bits_are_counted_with_and_without_the_function_of_numpy(values: list[int]) -> None:
    words = np.array(values, dtype=np.uint64)
    expected = [value.bit_count() for value in values]
    assert popcount(words).tolist() == swar_popcount(words).tolist() == expected
