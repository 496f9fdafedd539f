"""Curves with no more points than a chart can show.

Rule: in each of `width` equal parts of the steps, the lowest and the highest value stay, so no spike disappears.
"""

from __future__ import annotations

import numpy as np

from trainer.reporting.journal import Curve


def thin(curve: Curve, width: int) -> Curve:
    """The curve with at most 2 x width + 2 points, in the order of steps; its first and last point stay.

    Only points that are finite; a shorter curve keeps all of them.
    """
    known = curve.known
    if len(known.steps) <= 2 * width:
        return known
    steps, values = known.steps, known.values
    low, high = steps.min(), steps.max()
    part = np.minimum((steps - low) / max(high - low, 1.0) * width, width - 1).astype(np.int64)
    order = np.lexsort((values, part))
    last_of_part = np.flatnonzero(np.diff(part[order], append=width))
    first_of_part = np.r_[0, last_of_part[:-1] + 1]
    kept = np.unique(np.r_[0, order[first_of_part], order[last_of_part], len(steps) - 1])
    return Curve(steps=steps[kept], values=values[kept])
