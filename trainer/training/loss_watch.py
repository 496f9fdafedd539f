"""Notices a loss that explodes without becoming NaN, so that a run does not burn days on a model that is lost.

The rule: the reference is the lowest median of 16 consecutive steps so far. The loss has exploded when each of the last
16 steps is above twice the reference plus 0.5. Outliers and noise, also heavy noise, do not make 16 in a row; the
constant keeps losses near zero from counting.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable

_STEPS = 16
_FIRST = 4
"""Steps after which the beginning of a run is a reference"""
_FACTOR, _MARGIN = 2.0, 0.5


class LossWatch:
    """Watches the loss of every step."""

    def __init__(self, earlier: Iterable[tuple[int, float]] = ()) -> None:
        """earlier: (step, loss) as logged before the run was resumed."""
        self._losses: deque[float] = deque(maxlen=_STEPS)
        self._lowest, self._lowest_step = float("inf"), 0
        self._num_above = 0
        for step, loss in earlier:
            self.warning(step, loss)

    def warning(self, step: int, loss: float) -> str | None:
        """Take the loss of a step; returns a line when it has exploded, once until it has come down again."""
        limit = _FACTOR * self._lowest + _MARGIN
        self._num_above = self._num_above + 1 if loss > limit else 0
        self._losses.append(loss)
        if len(self._losses) >= _FIRST and (median := statistics.median(self._losses)) < self._lowest:
            self._lowest, self._lowest_step = median, step
        if self._num_above != _STEPS:
            return None
        return (
            f"step {step}: the loss is {loss:.4g}, and was above {limit:.4g} for {_STEPS} steps; around step "
            f"{self._lowest_step} it was {self._lowest:.4g}. Training has probably diverged: set checkpoints.resume to "
            f"a checkpoint before step {step - _STEPS + 1}, and lower learning_rates or raise schedule.warmup_ratio"
        )
