"""Equal rows, compared with loops over Python values and with np.unique."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from preprocess.dedupe.equal_rows import first_equal, numbered

VALUE = st.integers(0, 5) | st.integers(2**64 - 3, 2**64 - 1)


@given(st.lists(st.tuples(VALUE, VALUE), max_size=30))
def test_the_first_equal_row_is_that_of_a_loop(rows: list[tuple[int, int]]) -> None:
    columns = [np.array([row[word] for row in rows], np.uint64) for word in range(2)]
    assert first_equal(*columns).tolist() == [rows.index(row) for row in rows]
    single = columns[0].tolist()
    assert first_equal(columns[0]).tolist() == [single.index(value) for value in single]


@given(st.lists(VALUE, max_size=30))
def test_numbers_of_values_are_those_of_numpy(values: list[int]) -> None:
    array = np.array(values, np.uint64)
    names, index = np.unique(array, return_inverse=True)
    actual_names, actual = numbered(array)
    assert actual_names.tolist() == names.tolist()
    assert actual.tolist() == index.tolist()
