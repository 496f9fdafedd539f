"""Arrays in the cache come back as they were, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from preprocess.compiler.array_files import read_array, write_array

PAIR = np.dtype([("file", "<u8"), ("digest", "<u8")])


@pytest.mark.parametrize("length", [0, 3])
def test_an_array_is_read_in_the_form_that_is_expected_alone(tmp_path: Path, length: int) -> None:
    array = np.array([(number, number + 1) for number in range(length)], PAIR)
    write_array(tmp_path / "new" / "a.npy", array)
    again = read_array(tmp_path / "new" / "a.npy", PAIR, length)
    assert again is not None
    np.testing.assert_array_equal(again, array)
    assert read_array(tmp_path / "new" / "a.npy", PAIR, length + 1) is None
    assert read_array(tmp_path / "new" / "a.npy", np.dtype("<u8")) is None
    assert read_array(tmp_path / "none.npy", PAIR) is None


def test_an_array_that_has_the_content_of_another_file_is_as_none(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_array(tmp_path / f"{name}.npy", np.frombuffer(name.encode() * 8, dtype=np.uint64))
    (tmp_path / "a.npy").write_bytes((tmp_path / "b.npy").read_bytes())
    assert read_array(tmp_path / "a.npy", np.dtype(np.uint64)) is None


def test_every_flipped_bit_and_every_cut_makes_an_array_as_none(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    write_array(path, np.arange(4, dtype=np.uint64))
    whole = path.read_bytes()
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert read_array(path, np.dtype(np.uint64)) is None
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert read_array(path, np.dtype(np.uint64)) is None
