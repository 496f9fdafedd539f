"""Conversations that `dedupe` and `decontaminate` remove after they were read and before they are compiled.

Rule: each of their records is a reject whose detail names what it repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preprocess.compiler.split_assignment import EXCLUDED, Side
from preprocess.compiler.spool import Spool, reject_all
from preprocess.conversation import Reject


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """Rows of a dataset that are removed for one reason. matches: int64 [K], what each repeats; `describe` names it."""

    reason: str
    rows: npt.NDArray[np.int64]
    matches: npt.NDArray[np.int64]
    describe: Callable[[int], str]

    def rejects(self, spool: Spool) -> Iterator[Reject]:
        for row, match in zip(self.rows.tolist(), self.matches.tolist(), strict=True):
            yield from reject_all(spool[row], self.reason, self.describe(match))

    def records(self, spool: Spool) -> int:
        """How many records the rows were made from."""
        return int(spool.column("members")[self.rows].sum())


Exclusions = Mapping[str, Sequence[Exclusion]]
"""By dataset"""


def exclude(sides: Mapping[str, Side], exclusions: Exclusions) -> dict[str, Side]:
    """The sides without the excluded rows."""
    result = {name: side.copy() for name, side in sides.items()}
    for name, parts in exclusions.items():
        for part in parts:
            result[name][part.rows] = EXCLUDED
    return result
