"""Connected components of a graph, given as arrays of edges."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def components(size: int, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each of `size` nodes, the smallest node of its connected component, int64 [size].

    left, right: int64 [E], the ends of each edge. Each pass lowers labels to the smallest label across an edge, and
    then to the label of that label, until nothing changes: a logarithmic number of vector passes.
    """
    label = np.arange(size, dtype=np.int64)
    while True:
        before = label.copy()
        lowest = np.minimum(label[left], label[right])
        np.minimum.at(label, before[left], lowest)
        np.minimum.at(label, before[right], lowest)
        label = label[label]
        if np.array_equal(label, before):
            return label
