"""Records that repeat an earlier one: the same texts about the same images, in order.

Images alone do not make a duplicate: a dataset of questions shows each image many times. Of several equal records, the
one that is held out for evaluation stays, else the first in the order of the blend.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from preprocess.compiler.exclusions import Exclusion
from preprocess.compiler.image_copies import Copies
from preprocess.compiler.record_texts import RecordTexts
from preprocess.compiler.split_assignment import mix
from preprocess.compiler.spool import Spool
from preprocess.dedupe.equal_rows import first_equal

Rows = npt.NDArray[np.int64]


def duplicates(
    spools: Mapping[str, Spool],
    texts: Mapping[str, RecordTexts],
    held_out: Mapping[str, npt.NDArray[np.bool_]],
    copies: Mapping[str, Copies | None],
) -> dict[str, Exclusion]:
    """Dataset -> its rows that repeat another row, of any dataset.

    held_out: bool [rows]. copies: which images of a dataset count as the same; None: the dataset keeps its duplicates.
    """
    starts = np.cumsum([0, *(len(spool) for spool in spools.values())])
    names = list(spools)
    order = np.argsort(~np.concatenate([held_out[name] for name in names]), kind="stable")

    def describe(row: int) -> str:
        dataset = int(np.searchsorted(starts, row, "right")) - 1
        source = spools[names[dataset]][row - int(starts[dataset])].sources[0]
        return f"same images and texts as {source.file} {source.record} of dataset {names[dataset]}"

    original: dict[int, Rows] = {}
    result = {}
    for number, name in enumerate(names):
        same = copies[name]
        if same is None:
            continue
        if id(same) not in original:
            keys = np.concatenate([_keys(spools[other], texts[other], same, other) for other in names])
            original[id(same)] = _first_equal(keys, order)
        rows = np.arange(starts[number], starts[number + 1])
        first = original[id(same)][rows]
        repeated = np.flatnonzero(first != rows)
        result[name] = Exclusion(reason="duplicate", rows=repeated, matches=first[repeated], describe=describe)
    return result


def _keys(spool: Spool, texts: RecordTexts, copies: Copies, name: str) -> npt.NDArray[np.uint64]:
    """uint64 [rows, 2]: equal for rows with equal texts and the same images."""
    kinds = copies.kinds[copies.images.numbers[name]].astype(np.uint64)
    keys = texts["digest"].copy()
    for word in range(2):
        keys[:, word] ^= mix(spool.hash_of_images(mix(kinds, word + 1)), word)
    return keys


def _first_equal(keys: npt.NDArray[np.uint64], order: Rows) -> Rows:
    """For each row, the first row in `order` with the same key."""
    result = np.empty(len(keys), np.int64)
    result[order] = order[first_equal(keys[order, 0], keys[order, 1])]
    return result
