"""How often an epoch draws samples of each number of records, so that it draws an exact number of records.

A sample with branches is drawn as a whole, and samples have different numbers of branches. If samples alone were
counted, a dataset's records in an epoch, and with them the mixture, would depend on which samples are drawn. So samples
with equally many records are drawn as a dataset of their own, each equally often in every epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

_STEPS = (-1, 0, 1, 2)
"""How far from its share, rounded down, the draws of samples with equally many records may be"""


COMMON_SHARE = 0.95
"""Numbers of records that together have this share of the samples are common, the other ones rare"""


def common_records(sizes: Mapping[int, int]) -> list[int]:
    """The numbers of records that most samples have, the most common one first. sizes: as in draws_by_records."""
    common: list[int] = []
    for count in sorted(sizes, key=lambda count: (-sizes[count], count)):
        if sum(sizes[other] for other in common) < COMMON_SHARE * sum(sizes.values()):
            common.append(count)
    return common


def table_of(by_branches: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """int64 [shards, K]: of each shard, how many samples have 1, 2, ... K records."""
    counts = np.zeros((len(by_branches), max(map(len, by_branches), default=0)), np.int64)
    for number, row in enumerate(by_branches):
        counts[number, : len(row)] = row
    return counts


def spread_of_shards(samples: npt.NDArray[np.int64], columns: Sequence[int], *, deviations: float) -> int:
    """By how many shards samples with equally many records may be ahead of and behind the others of a dataset.

    samples: as table_of gives; columns: those of its numbers of records that matter; deviations: how many standard
    deviations are covered on either side. All come evenly through an epoch, shards hold them unevenly, and shards come
    in random order. So after half of N shards, where it is largest, the distance has a standard deviation of
    sqrt(N) / 2 times that of a shard's part, in shards (a Brownian bridge).
    """
    shards, totals = len(samples), samples.sum(0)
    columns = [column for column in columns if totals[column]]
    if len(columns) < 2:
        return 0
    even = samples.sum(1) / samples.sum()
    parts = np.std([shards * (samples[:, column] / totals[column] - even) for column in columns], axis=1)
    return math.ceil(deviations * math.sqrt(shards) / 2 * float(np.sort(parts)[-2:].sum()))


def draws_by_records(records: int, sizes: Mapping[int, int]) -> dict[int, int]:
    """Number of records of a sample -> draws of such samples in an epoch, each near its share.

    records: what an epoch draws of the dataset. sizes: number of records of a sample -> samples. The draws have exactly
    that many records together or, where no draws near the shares have, as many as come nearest to it.
    """
    total = sum(count * samples for count, samples in sizes.items())
    if not total:
        return dict.fromkeys(sizes, 0)
    draws, rests = {}, {}  # of each share the whole number, and the rest in 1 / total
    for count, samples in sizes.items():
        draws[count], rests[count] = divmod(records * samples, total)
    missing = records - sum(count * number for count, number in draws.items())
    steps = _nearest(missing, {count: rests[count] for count in sizes if sizes[count]}, draws, total)
    return {count: number + steps.get(count, 0) for count, number in draws.items()}


def _nearest(missing: int, rests: Mapping[int, int], draws: Mapping[int, int], total: int) -> dict[int, int]:
    """Steps whose records come nearest to the missing ones; of several the ones nearest to the rests of the shares.

    Goes through all sums of records that steps can reach, but for those far from the sum of the rests so far.
    """
    reached: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    sum_of_rests, window = 0, 2 * max(rests) * total
    for count, rest in rests.items():
        sum_of_rests += count * rest
        after: dict[int, tuple[int, tuple[int, ...]]] = {}
        for records, (distance, steps) in reached.items():
            for step in _STEPS:
                key, farther = records + count * step, distance + count * abs(step * total - rest)
                is_possible = draws[count] + step >= 0 and abs(key * total - sum_of_rests) <= window
                if is_possible and (key not in after or farther < after[key][0]):
                    after[key] = (farther, (*steps, step))
        reached = after
    best = min(reached, key=lambda records: (abs(records - missing), reached[records][0], records))
    return dict(zip(rests, reached[best][1], strict=True))
