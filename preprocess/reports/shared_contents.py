"""Images and samples that come back: in one dataset, in two, and on both sides of the split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from preprocess.reports.parts import Part
from preprocess.reports.tables import Table, Value

_MOST_PAIRS = 200


def shared_tables(parts: Sequence[Part]) -> Iterator[Table]:
    """Images shown again, images in two datasets, equal samples; of the latter two the 200 largest pairs."""
    yield _reuse(parts)
    yield _overlap(parts)
    yield _copies(parts)


def _reuse(parts: Sequence[Part]) -> Table:
    rows: list[list[Value]] = []
    for part in parts:
        images, counts = np.unique(part.images_shown, return_counts=True)
        if len(images):
            rows.append([part.dataset, part.split, len(images), float(counts.mean()), int(counts.max())])
    return Table(
        name="image_reuse",
        title="Images shown again",
        text="Different images, and in how many samples each is: on average, and the most used one.",
        columns=("dataset", "split", "images", "samples_each", "most"),
        rows=rows,
    )


def _overlap(parts: Sequence[Part]) -> Table:
    """Pairs of dataset sides that show the same images; the largest overlaps first."""
    images = [np.unique(part.images_shown) for part in parts]
    rows: list[list[Value]] = []
    for (first, first_images), (second, second_images) in combinations(zip(parts, images, strict=True), 2):
        both = len(np.intersect1d(first_images, second_images, assume_unique=True))
        if both:
            rows.append([_named(first), _named(second), both, "yes" if first.split != second.split else "no"])
    rows.sort(key=lambda row: -int(row[2] or 0))
    return Table(
        name="image_overlap",
        title="Images in two datasets",
        text="Images that are in both, by their ids. A build never puts one image on both sides of the split.",
        columns=("first", "second", "images", "across_the_split"),
        rows=rows[:_MOST_PAIRS],
    )


def _copies(parts: Sequence[Part]) -> Table:
    """Samples whose tokens and images are equal, byte for byte: in one dataset, and in two."""
    distinct = [np.unique(part.contents) for part in parts]
    rows: list[list[Value]] = [
        [_named(part), _named(part), len(part.contents) - len(different)]
        for part, different in zip(parts, distinct, strict=True)
    ]
    for (first, first_contents), (second, second_contents) in combinations(zip(parts, distinct, strict=True), 2):
        rows.append(
            [_named(first), _named(second), len(np.intersect1d(first_contents, second_contents, assume_unique=True))]
        )
    rows = sorted((row for row in rows if row[2]), key=lambda row: -int(row[2] or 0))
    return Table(
        name="equal_samples",
        title="Equal samples",
        text="Samples with the tokens and images of another one: further copies in a dataset, and samples in two.",
        columns=("first", "second", "samples"),
        rows=rows[:_MOST_PAIRS],
    )


def _named(part: Part) -> str:
    return f"{part.dataset} ({part.split})"
