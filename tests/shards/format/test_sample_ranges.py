"""Which bytes are requested for samples that are read alone: they, and little of what is between them."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from shards.format.sample_ranges import GAP_BYTES, GAP_SHARE, _merged

Span = tuple[int, int, int]


@st.composite
def spans(draw: st.DrawFn) -> list[Span]:
    end, every = 0, []
    for number in range(draw(st.integers(1, 20))):
        start = end + draw(st.sampled_from([0, 0, 1, 512, 4096, GAP_BYTES + 1]))
        end = start + draw(st.sampled_from([1, 2048, 100_000]))
        every.append((start, end, number))
    return every


@given(spans())
def test_requests_hold_every_sample_and_a_twentieth_more_at_most(every: list[Span]) -> None:
    requests = _merged(every)
    assert all(sum(first <= start and end <= last for first, last in requests) == 1 for start, end, _ in every)
    assert sum(end - start for start, end in requests) <= (1 + GAP_SHARE) * sum(end - start for start, end, _ in every)
    assert all(end < start for (_, end), (start, _) in pairwise(requests)), "neighbours come together"


def test_the_smallest_gaps_are_closed_first() -> None:
    every = [(0, 1000, 0), (1140, 2140, 1), (2160, 3160, 2)]
    assert _merged(every) == [(0, 1000), (1140, 3160)]
