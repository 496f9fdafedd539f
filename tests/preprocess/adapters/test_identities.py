"""Ids of conversations: a set that stays small, however many there are."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from preprocess.adapters.parsing import identities
from preprocess.adapters.parsing.identities import HashSet


@pytest.mark.parametrize("merged_at_once", [1, 2, 5, 64])
def test_seen_numbers_are_a_set(merged_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "_MERGED_AT_ONCE", merged_at_once)
    values = [0, 1, 2**63 - 1, 2**63, 2**64 - 1, *(random.Random(0).randrange(2**64) for _ in range(300))] * 2
    seen, expected = HashSet(), set[int]()
    for value in values:
        assert (value in seen) == (value in expected)
        assert value ^ 4 not in seen or value ^ 4 in expected
        if value not in seen:
            seen.add(value)
            expected.add(value)
    assert all(value in seen for value in expected)


def test_seen_numbers_take_eight_bytes_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "_MERGED_AT_ONCE", 1 << 12)
    count = 8 << 12
    seen = HashSet()
    tracemalloc.start()
    for value in range(count):
        seen.add(value * 0x9E3779B97F4A7C15 % 2**64)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < count * 9
    assert 0x9E3779B97F4A7C15 in seen
