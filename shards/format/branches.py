"""Samples of several records about the same images: a common beginning, then one branch for each record.

The ids of the beginning and of a branch, one after the other, are those of its record alone. So a branch sees the
beginning and itself, never another branch, and its positions continue from the end of the beginning.

Shapes: S stored tokens of a sample, an image counting as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Branch:
    """One record of a sample: its tokens are the first `beginning` ones and those of [start, end)."""

    beginning: int
    start: int
    end: int

    def of(self, values: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The values of the record's tokens, from values [S] of all tokens of the sample."""
        if self.beginning == self.start:
            return values[: self.end]
        return np.concatenate([values[: self.beginning], values[self.start : self.end]])


def join_branches(records: Sequence[IntArray], beginning: int) -> IntArray:
    """Tokens int32 [3, S] of a sample: ids, labels and branch numbers; records: ids over labels, int32 [2, T] each.

    beginning: how many first tokens all records have in common; none of them is trained.
    """
    parts = [records[0][:, :beginning], *(record[:, beginning:] for record in records)]
    numbers = np.repeat(np.arange(len(parts), dtype=np.int32), [part.shape[1] for part in parts])
    return np.vstack([np.concatenate(parts, axis=1), numbers])


def branches_of(branch_ids: IntArray | None, length: int) -> list[Branch]:
    """The records of a sample of `length` tokens; one that is the whole sample if it has no branches."""
    starts = [] if branch_ids is None else np.flatnonzero(np.diff(branch_ids, prepend=0)).tolist()
    if not starts:
        return [Branch(0, 0, length)]
    return [Branch(starts[0], start, end) for start, end in zip(starts, [*starts[1:], length], strict=True)]


def branch_problems(tokens: Sequence[IntArray], image_id: int, ignored: int) -> Iterator[str]:
    """What in the ids, labels and branch numbers of a sample is not as FORMAT.md says."""
    ids, labels, branch_ids = tokens
    steps = np.diff(branch_ids, prepend=0)
    if not len(ids) or branch_ids[0] != 0 or ((steps != 0) & (steps != 1)).any() or branch_ids[-1] < 2:
        yield "its branch numbers are not 0, 1, 2, ... in order, with two branches at least"
        return
    trained = branch_ids[labels != ignored]
    if (trained == 0).any():
        yield "a token of its common beginning is trained"
    if len(np.unique(trained[trained > 0])) != branch_ids[-1]:
        yield "nothing in one of its branches is trained"
    if branch_ids[ids == image_id].any():
        yield "one of its branches has an image placeholder"
