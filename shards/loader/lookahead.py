"""Which shards the next draws of an order need, in the order of their need. Runs in the main process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shards.format.split import SplitSamples
from shards.sampling.cache_plan import CachePlan
from shards.sampling.order import Order
from shards.sampling.packed_sequences import AnyOrder

_WINDOWS = 2
"""Without a plan, the shards of this many packed windows are named: the one that is read, and the next"""

_LOOKED_AT = 32
"""Windows of an epoch from which it is estimated how many samples are of shards that are not named"""


def with_strays(plan: CachePlan | None, order: AnyOrder, split: SplitSamples, pack_window: int) -> CachePlan | None:
    """The plan, with the samples that are requested by themselves as their shards are not open at their turn.

    These are of datasets with branches. Their share is that of windows that are evenly spaced through an epoch.
    """
    if plan is None or plan.by_sample or not split.has_branches:
        return plan
    lookahead = Lookahead(order, split, pack_window, plan)
    if not lookahead.is_planned:
        return plan
    windows = -(-len(order) // pack_window)
    samples = strays = 0
    for window in range(0, windows, -(-windows // _LOOKED_AT)):
        start = window * pack_window
        numbers = split.shards_of(order.samples(0, start, min(start + pack_window, len(order))))
        samples += len(numbers)
        strays += int((~np.isin(numbers, lookahead.shards(start))).sum())
    return plan.with_strays(strays / max(samples, 1))


class Lookahead:
    """With a plan, as many shards as the cache holds; without, those of the next samples, until all were named."""

    def __init__(
        self,
        order: AnyOrder,
        split: SplitSamples,
        pack_window: int,
        plan: CachePlan | None,
        *,
        epochs: int | None = None,
    ) -> None:
        """epochs: after so many nothing is read; None: reading never ends."""
        self._order, self._split, self._pack_window, self._plan = order, split, pack_window, plan
        self._end = None if epochs is None else epochs * len(order)
        self._not_named = set(range(len(list(split.shard_starts()))))
        self._last: tuple[int, tuple[int, ...]] = (-1, ())

    @property
    def is_planned(self) -> bool:
        """Whether only the shards that are named may be downloaded."""
        return isinstance(self._order, Order) and self._order.opens_few_shards and self._plan is not None

    def shards(self, cursor: int) -> tuple[int, ...]:
        """For a batch that begins at a cursor, those that it needs first."""
        window = cursor - cursor % len(self._order) % self._pack_window
        if window != self._last[0]:
            self._last = window, self._of_window(window)
        return self._last[1]

    def _of_window(self, start: int) -> tuple[int, ...]:
        draws = _WINDOWS * self._pack_window
        if self._plan is not None:
            draws = self._pack_window + self._plan.draws_ahead // 2
        elif not self._not_named:
            return ()
        shards: dict[int, None] = {}
        for epoch, first, last in self._pieces(start, draws):
            if isinstance(self._order, Order) and self._order.opens_few_shards:
                has_spread = self._plan is not None and self._plan.has_spread
                numbers = self._order.open_shards(epoch, first, last, has_spread=has_spread)
            else:
                numbers = self._split.shards_of(self._order.samples(epoch, first, last))
                numbers = numbers[np.sort(np.unique(numbers, return_index=True)[1])]
            shards.update(dict.fromkeys(numbers.tolist()))
        self._not_named -= shards.keys()
        return tuple(shards)

    def _pieces(self, start: int, draws: int) -> Iterator[tuple[int, int, int]]:
        """Draws from `start` on as (epoch, first, last)."""
        length, end = len(self._order), min(start + draws, self._end or start + draws)
        while start < end:
            epoch, first = divmod(start, length)
            last = min(length, first + end - start)
            yield epoch, first, last
            start += last - first
