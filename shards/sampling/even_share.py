"""A part of a split that stands for all of its datasets, for evaluations that end after some batches.

Rules
- The order is a function of the sizes of the datasets and a key. It begins with a sample of every dataset; from there
  on, every beginning holds the datasets in proportion to their sizes. Which samples they are is random.
- A share is the longest beginning of the order that packs into the allowed number of sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shards.sampling.permutation import Indices, make_key, shuffled


def even_order(sizes: Sequence[int], key: object) -> Indices:
    """The samples of a split, int64 [sum of sizes], in the order in which shares take them; larger datasets first.

    sizes: samples of each dataset, as they follow each other in the split.
    """
    samples, places = [np.zeros(0, np.int64)], [np.zeros(0, np.float64)]
    start = 0
    for number, size in enumerate(sizes):
        place = (2 * np.arange(size) + 1) / (2 * max(size, 1))
        place[:1] = -size  # a first sample of every dataset
        samples.append(start + shuffled(size, make_key(key, number)))
        places.append(place)
        start += size
    return np.concatenate(samples)[np.argsort(np.concatenate(places), kind="stable")]


def even_share(order: Indices, count_sequences: Callable[[Indices], int], most: int) -> Indices:
    """The samples of the share, sorted. count_sequences: of these samples, never more than there are samples."""

    def fit(length: int) -> bool:
        return count_sequences(np.sort(order[:length])) <= most

    fits, too_many = min(most, len(order)), len(order) + 1
    while 0 < 2 * fits < too_many and fit(2 * fits):  # so that a large split is not packed for a small share
        fits *= 2
    too_many = min(too_many, 2 * fits)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if fit(middle):
            fits = middle
        else:
            too_many = middle
    return np.sort(order[:fits])
