"""Assign every conversation to a side of the train/eval split.

Rule: no group (an image, a video, or all copies of an image) is ever on both sides. Groups in one conversation belong
together, so the unit is a connected component, over all datasets at once. The side of a component depends only on its
smallest group id and the seed, so it does not change when data is added elsewhere.

Special cases. A component with an official val or test record goes to eval. But multi-image datasets can connect nearly
everything into one giant component: a giant stays in train, except for the groups in official eval records. So does a
component with a record that the blend pins to train. Then a record that shows groups from both sides is a conflict,
which becomes a reject; so is a record pinned to train whose groups are all on the eval side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.dedupe.components import components
from preprocess.dedupe.equal_rows import numbered
from shards.format.manifest import SPLITS

TRAIN, EVAL, CONFLICT, EXCLUDED = 0, 1, 2, 3  # the last is of exclusions.py
NAMES = SPLITS  # TRAIN and EVAL are its indexes

Hashes = npt.NDArray[np.uint64]
Side = npt.NDArray[np.uint8]


def assign(
    groups: Hashes,
    starts: npt.NDArray[Any],
    own: Hashes,
    official_eval: npt.NDArray[np.bool_],
    pinned_train: npt.NDArray[np.bool_],
    *,
    share: float,
    seed: int,
) -> Side:
    """The side of each of R conversations, uint8 [R].

    groups: uint64 [N], concatenated group ids of all conversations. starts: int32 or int64 [R + 1], where each
    conversation's groups begin. own: uint64 [A], a hash of the identity of each of the A conversations without groups.
    official_eval: bool [R], on the eval side whatever the share is. pinned_train: bool [R], never on the eval side; no
    conversation is both. share: of the groups, for eval.
    """
    counts = np.diff(starts)
    side = np.full(len(counts), TRAIN, np.uint8)
    alone = np.flatnonzero(counts == 0)
    side[alone[(_chance(own, seed) < share) & ~pinned_train[alone] | official_eval[alone]]] = EVAL
    if not len(groups):
        return side
    names, index = numbered(groups)
    same_row = np.ones(len(groups) - 1, np.bool_)
    borders = starts[(starts > 0) & (starts < len(groups))]
    same_row[borders - 1] = False
    component = components(len(names), index[:-1][same_row], index[1:][same_row])
    sizes = np.bincount(component, minlength=len(names))
    pinned = np.zeros(len(names), dtype=bool)
    pinned[component[index[np.repeat(pinned_train, counts)]]] = True
    small = (sizes[component] <= max(8, int(share * len(names)))) & ~pinned[component]
    chosen = small & (_chance(names[component], seed) < share)
    named = np.zeros(len(names), dtype=bool)
    named[index[np.repeat(official_eval, counts)]] = True
    touched = np.zeros(len(names), dtype=bool)
    touched[component[named]] = True
    held_out = chosen | named | (small & touched[component])
    in_eval = np.add.reduceat(np.append(held_out[index], False), starts[:-1], dtype=np.int32)
    some, every = in_eval > 0, in_eval == counts
    with_groups = np.where(some, np.where(every & ~pinned_train, np.uint8(EVAL), np.uint8(CONFLICT)), np.uint8(TRAIN))
    return np.where(counts > 0, with_groups, side)


def mix(values: Hashes, seed: int) -> Hashes:
    """A hash for each hash and seed (splitmix64's finaliser)."""
    with np.errstate(over="ignore"):
        mixed = values ^ np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _chance(values: Hashes, seed: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each hash and seed."""
    return (mix(values, seed) >> np.uint64(11)).astype(np.float64) / 2.0**53
