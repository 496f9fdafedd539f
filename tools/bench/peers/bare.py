"""The bare parts of a loader's work over the same stored bytes: the most that any loader of them could reach.

full: simplejpeg decodes the stored JPEGs into one buffer; nothing is read. read: each sample's row is looked up in the
Arrow index, its bytes are copied out of the mapped tar, and its tokens are looked at, in a shuffled order; nothing is
checked. copy: the same with all rows looked up beforehand, so that copying is all that is left.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg

import harness
from preprocessing import SIZE, Preprocess

_NPY_HEADER = 128  # NumPy's format 1.0 pads its header to this

Row = tuple[mmap.mmap, int, int, list[int], list[int]]
"""A sample: its tar, offset and size in it, and its members' offsets and sizes."""


def batches(task: harness.Task, preprocess: Preprocess) -> Iterator[Any]:
    rows: list[Callable[[], Row]] = []
    for path in sorted((task.folder / task.build / "shards").glob("*/train-*.tar")):
        with path.open("rb") as file:
            tar = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        index = pa.ipc.open_file(pa.memory_map(str(path.with_suffix(".arrow")))).read_all()
        columns = [index.column(name).chunk(0) for name in ("offset", "size", "member_offsets", "member_sizes")]
        rows += [partial(_row, tar, columns, number) for number in range(index.num_rows)]
    shuffled = [rows[at] for at in np.random.default_rng(0).permutation(len(rows))]
    several = [shuffled[start : start + task.batch_size] for start in range(0, len(shuffled), task.batch_size)]
    if task.mode == "read":
        return _walk(several)
    known = [[row() for row in some] for some in several]
    return _walk([[partial(_known, row) for row in some] for some in known]) if task.mode == "copy" else _decode(known)


def _row(tar: mmap.mmap, columns: list[Any], number: int) -> Row:
    offset, size, member_offsets, member_sizes = (column[number].as_py() for column in columns)
    return tar, offset, size, member_offsets, member_sizes


def _known(row: Row) -> Row:
    return row


def _walk(several: list[list[Callable[[], Row]]]) -> Iterator[Any]:
    for some in several:
        tokens = []
        for row in some:
            tar, offset, size, member_offsets, member_sizes = row()
            sample = tar[offset : offset + size]
            count = (member_sizes[1] - _NPY_HEADER) // 4
            tokens.append(np.frombuffer(sample, np.int32, count, member_offsets[1] + _NPY_HEADER))
        yield {"input_ids": tokens}


def _decode(several: list[list[Row]]) -> Iterator[Any]:
    images = [
        [
            tar[offset + start : offset + start + size]
            for tar, offset, _, starts, sizes in some
            for start, size in zip(starts[2:], sizes[2:], strict=True)
        ]
        for some in several
    ]
    buffer = np.empty((SIZE, SIZE, 3), np.uint8)
    for sample_images in images:
        for image in sample_images:
            simplejpeg.decode_jpeg(image, buffer=buffer)
        yield {"input_ids": sample_images}


if __name__ == "__main__":
    harness.main(batches)
