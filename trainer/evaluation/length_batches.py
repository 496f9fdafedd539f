"""Batches of prompts of similar length, those about the same images together."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping


def length_batches(
    lengths: Mapping[int, int], batch: int, images: Mapping[int, Hashable] | None = None
) -> Iterator[list[int]]:
    """Keys of `lengths` in groups of similar length, the longest first, so that too little memory shows at once.

    images: of each, what it shows. Those that show the same follow each other, so that it need not be kept for long.
    """
    shown = {index: index if images is None else images[index] for index in lengths}
    longest: dict[Hashable, int] = {}
    for index, length in lengths.items():
        longest[shown[index]] = max(length, longest.get(shown[index], 0))
    order = {each: number for number, each in enumerate(longest)}
    ordered = sorted(lengths, key=lambda i: (-longest[shown[i]], order[shown[i]], -lengths[i]))
    for start in range(0, len(ordered), batch):
        yield ordered[start : start + batch]
