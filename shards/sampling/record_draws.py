"""How often an epoch draws samples of each number of records, so that it draws an exact number of records.

A sample with branches is drawn as a whole, and samples have different numbers of branches. If samples alone were
counted, a dataset's records in an epoch, and with them the mixture, would depend on which samples are drawn. So samples
with equally many records are drawn as a dataset of their own, each equally often in every epoch.
"""

from __future__ import annotations

from collections.abc import Mapping

_STEPS = (-1, 0, 1, 2)
"""How far from its share, rounded down, the draws of samples with equally many records may be"""


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
