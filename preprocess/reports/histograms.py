"""Histograms with edges that people can read: whole numbers, or powers of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from preprocess.reports.tables import Drawing, Table, Value

Numbers = npt.NDArray[np.int64] | npt.NDArray[np.float64]
_MOST_BARS = 40


def whole_edges(largest: int) -> list[float]:
    """From 0 in steps of 1, 2, 5, 10, ... of which at most 40 reach beyond `largest`."""
    step = next(
        base * 10**power for power in range(20) for base in (1, 2, 5) if largest < base * 10**power * _MOST_BARS
    )
    return [float(edge) for edge in range(0, largest + step + 1, step)]


def doubling_edges(largest: int) -> list[float]:
    """0, 1 and then powers of two in half steps, beyond `largest`."""
    edges = [0.0, 1.0]
    while edges[-1] <= largest:
        edges += [edges[-1] * 1.5, edges[-1] * 2] if edges[-1] >= 2 else [edges[-1] * 2]
    return edges


def histogram_table(
    name: str,
    title: str,
    text: str,
    values: Mapping[str, Numbers],
    *,
    unit: str,
    edges: Sequence[float] | None = None,
    is_of_read: bool = False,
) -> Table:
    """Counts of each series between edges; a value on an edge belongs to the bar that starts there.

    Values beyond the edges are in the first and the last bar.
    edges: by default whole numbers, or powers of two if the largest value is above 200.
    """
    largest = max((int(series.max()) for series in values.values() if len(series)), default=0)
    is_log = edges is None and largest > 200
    edges = edges or (doubling_edges(largest) if is_log else whole_edges(largest))
    counts = {label: np.histogram(np.clip(series, edges[0], edges[-1]), edges)[0] for label, series in values.items()}
    rows: list[list[Value]] = [
        [start, end, *(int(counts[label][bar]) for label in values)] for bar, (start, end) in enumerate(pairwise(edges))
    ]
    for end in (-1, 0):  # bars of nothing on either side
        while len(rows) > 1 and not any(rows[end][2:]):
            rows.pop(end)
    return Table(
        name=name,
        title=title,
        text=text,
        columns=("from", "to", *values),
        rows=rows,
        drawing=Drawing(kind="histogram", columns=tuple(values), shown=tuple(values), unit=unit, log=is_log),
        is_of_read=is_of_read,
    )
