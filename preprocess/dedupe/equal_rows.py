"""Which rows of an array are equal, with one sort and few temporary arrays: blends have up to billions of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.uint64]


def first_equal(*columns: Values) -> npt.NDArray[np.int64]:
    """For each of N rows the first one with the same values, int64 [N]. columns: each [N]."""
    order = np.argsort(columns[0], kind="stable") if len(columns) == 1 else np.lexsort(columns[::-1])
    starts = np.flatnonzero(_begins(order, columns))
    first = np.repeat(order[starts], np.diff(starts, append=len(order)))  # the sort is stable, so it is the smallest
    result = np.empty(len(order), np.int64)
    result[order] = first
    return result


def narrow(count: int) -> np.dtype[Any]:
    """The smaller of int32 and int64 that holds numbers up to a count."""
    return np.dtype(np.int32 if count < 2**31 else np.int64)


def numbered(values: Values) -> tuple[Values, npt.NDArray[Any]]:
    """The distinct values, ascending, and for each of N values its number among these, `narrow` [N].

    It is np.unique in less space.
    """
    order = np.argsort(values, kind="stable")
    begins = _begins(order, (values,))
    names = values[order[begins]]
    result = np.empty(len(values), narrow(len(values)))
    result[order] = np.repeat(
        np.arange(len(names), dtype=result.dtype), np.diff(np.flatnonzero(begins), append=len(order))
    )
    return names, result


def _begins(order: npt.NDArray[np.int64], columns: tuple[Values, ...]) -> npt.NDArray[np.bool_]:
    """For each row in a sorted order, whether it differs from the one before."""
    begins = np.zeros(len(order), np.bool_)
    begins[:1] = True
    for column in columns:
        ordered = column[order]
        begins[1:] |= ordered[1:] != ordered[:-1]
    return begins
