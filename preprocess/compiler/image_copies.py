"""Which images of a blend are copies of each other, so that the split keeps them on one side.

By bytes: a copy has the same bytes, under any name, in any dataset. Equal files have equal sizes and equal ends, so
only files that agree on both are read in full.

By look: also images with the same pixels, and images whose perceptual hashes are close. Every image is decoded once.
A copy of a copy is a copy, so two images of one kind may differ by more than the distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preprocess.compiler.fingerprints import FingerprintStage, ImageTable
from preprocess.compiler.spool import Spool
from preprocess.dedupe.components import components
from preprocess.dedupe.equal_rows import first_equal
from preprocess.dedupe.fingerprint import Fingerprints
from preprocess.dedupe.near_search import near_components

Groups = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """images: the images of the blend. kinds: int64 [P], the smallest number among the copies of each image.

    ids: uint64 [P], a name for all copies of one image, which does not depend on other images.
    """

    images: ImageTable
    kinds: npt.NDArray[np.int64]
    ids: Groups

    def groups(self, name: str, spool: Spool) -> tuple[Groups, npt.NDArray[np.int64]]:
        """A dataset's group ids and where each row's begin, with one more for each image that has copies."""
        values, starts = spool.lists("groups")
        numbers = self.images.numbers[name]
        repeated = np.bincount(self.kinds, minlength=len(self.kinds))[self.kinds] > 1
        has_copies = repeated[numbers]
        if not has_copies.any():
            return values.astype(np.uint64, copy=False), starts
        row_of_group = np.repeat(np.arange(len(spool)), np.diff(starts))
        row_of_image = np.repeat(np.arange(len(spool)), spool.counts("images"))[has_copies]
        rows = np.concatenate([row_of_group, row_of_image])
        order = np.argsort(rows, kind="stable")
        every = np.concatenate([values.astype(np.uint64), self.ids[numbers[has_copies]]])[order]
        return every, np.searchsorted(rows[order], np.arange(len(spool) + 1))


def copies_by_bytes(stage: FingerprintStage) -> Copies:
    """Images with the same bytes."""
    images = ImageTable(stage)
    tails = stage.fingerprints(images, np.arange(len(images)), "tail")
    suspects = _repeated(tails)
    digests = stage.fingerprints(images, suspects, "bytes")
    kinds = np.arange(len(images))
    ids = np.zeros(len(images), np.uint64)
    kinds[suspects], ids[suspects] = suspects[_first_equal(digests)], digests["digest"][:, 0]
    return Copies(images=images, kinds=kinds, ids=ids)


def copies_by_look(stage: FingerprintStage, distance: int) -> Copies:
    """Images with the same bytes or pixels, or with perceptual hashes within `distance` bits of 256."""
    images = ImageTable(stage)
    looks = stage.fingerprints(images, np.arange(len(images)), "look")
    decoded = looks["orientation"] > 0
    hashed = np.flatnonzero(decoded & ~looks["flat"])
    near = np.arange(len(images))
    near[hashed] = hashed[near_components(looks["hash"][hashed], distance, threads=stage.threads)]
    same = [_first_equal(looks), _first_equal(looks, "pixels", decoded), near]
    kinds = components(len(images), np.tile(np.arange(len(images)), 3), np.concatenate(same))
    ids = np.full(len(images), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(ids, kinds, looks["digest"][:, 0])
    return Copies(images=images, kinds=kinds, ids=ids[kinds])


def _repeated(fingerprints: Fingerprints) -> npt.NDArray[np.int64]:
    """The rows whose digest another row has too."""
    first = _first_equal(fingerprints)
    counts = np.bincount(first, minlength=len(fingerprints))
    return np.flatnonzero(counts[first] > 1)


def _first_equal(
    fingerprints: Fingerprints, field: str = "digest", valid: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.int64]:
    """For each row, the first row with the same value; a row that is not valid (or missing) equals only itself."""
    own = np.arange(len(fingerprints))
    rows = np.flatnonzero(fingerprints["present"] if valid is None else valid)
    own[rows] = rows[first_equal(*(fingerprints[field][rows, word] for word in range(2)))]
    return own
