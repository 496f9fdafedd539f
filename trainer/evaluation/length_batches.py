"""Batches of prompts of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping


def length_batches(lengths: Mapping[int, int], batch: int) -> Iterator[list[int]]:
    """Keys of `lengths` in groups of similar length, the longest first, so that too little memory shows at once."""
    ordered = sorted(lengths, key=lambda index: -lengths[index])
    for start in range(0, len(ordered), batch):
        yield ordered[start : start + batch]
