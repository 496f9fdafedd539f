"""PDQ, a 256-bit hash of how an image looks: few bits change when it is resized, re-encoded or slightly edited.

PDQ is Facebook's ("The TMK+PDQF video-hashing algorithm and the PDQ image-hashing algorithm", 2019): smooth the luma
with two box filters along each axis, take 64x64 of its pixels, compute the 16x16 lowest frequencies of their DCT
without the constant ones, and set each bit whose coefficient is above the median. An image with a side of 1,024 pixels
or more is first averaged over whole blocks, as other programs for PDQ shrink large images too. One with a side below
256 is first enlarged.

Rule: the same pixels give the same hash on every machine. All sums are of whole numbers that their type holds exactly,
in any order: below 2^24 in float32, below 2^53 in float64. So luma has 8 bits and weights are whole numbers, and a bit
or two of 256 can differ from programs that add up fractions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

BITS = 256
_SIDE = 64
_FREQUENCIES = 16
_MIN_AVERAGED = 512
"""Fewest pixels that averaging leaves on a side"""
_MIN_SIDE = 256
"""Below it PDQ would average only one or two pixels, so that a copy of half the size has another hash"""
_MIN_HASHABLE = 5
"""PDQ hashes no image with a shorter side"""
_FLAT_GRADIENT = 2.0
"""Mean absolute difference of neighbours among the 64x64, of 255, below which an image counts as flat"""
_BLOCK = 8
"""Rows of the 64 that are computed at once: each needs few of the image's rows"""
_WEIGHT_UNIT = 2**15
_LUMA_UNIT = 2**7

Weights = tuple[tuple[slice, npt.NDArray[np.float32]], ...]


def _dct_matrix() -> npt.NDArray[np.float64]:
    """Frequencies 1 to 16 of the DCT-II of 64 values, [16, 64], as whole numbers of 2^-14."""
    frequency = np.arange(1, _FREQUENCIES + 1)[:, None]
    position = np.arange(_SIDE)[None, :]
    return np.round(np.cos(np.pi * frequency * (2 * position + 1) / (2 * _SIDE)) * 2**14)


_DCT = _dct_matrix()


@dataclass(frozen=True, slots=True, kw_only=True)
class PerceptualHash:
    """words: four uint64, highest bits first, as PDQ programs print them. flat: too little detail to identify it."""

    words: tuple[int, int, int, int]
    flat: bool


def perceptual_hash(luma: Image.Image) -> PerceptualHash:
    """The hash of an upright image of any size, given as 8-bit luma (mode L)."""
    small = _decimated(luma)
    coefficients = (_DCT @ small @ _DCT.T).ravel()
    median = np.partition(coefficients, BITS // 2 - 1)[BITS // 2 - 1]
    words = np.packbits(coefficients[::-1] > median).view(">u8").tolist()
    gradient = np.abs(np.diff(small, axis=0)).mean() + np.abs(np.diff(small, axis=1)).mean()
    flat = bool(gradient < _FLAT_GRADIENT * _LUMA_UNIT) or min(luma.size) < _MIN_HASHABLE
    return PerceptualHash(words=tuple(words), flat=flat)


def _decimated(luma: Image.Image) -> npt.NDArray[np.float64]:
    """64x64 luma in units of 2^-7, with 128 as zero."""
    pixels = np.asarray(_of_middle_size(luma)).astype(np.float32)
    rows = _filtered(pixels)  # [64, width]
    both = _filtered(rows.T.astype(np.float64)).T
    return np.round(both / (_WEIGHT_UNIT**2 // _LUMA_UNIT)) - 128 * _LUMA_UNIT


def _of_middle_size(luma: Image.Image) -> Image.Image:
    """With sides of 256 to 1,023 pixels, changed by whole factors."""
    across, down = (max(1, side // _MIN_AVERAGED) for side in luma.size)
    if across > 1 or down > 1:
        luma = luma.reduce((across, down))
    width, height = (-(-_MIN_SIDE // side) * side for side in luma.size)
    return luma if (width, height) == luma.size else luma.resize((width, height), Image.Resampling.BILINEAR)


def _filtered(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Smooth [N, M] along the first axis and take 64 of its rows, [64, M], times 2^15."""
    result = np.empty((_SIDE, values.shape[1]), values.dtype)
    for block, (rows, weights) in enumerate(_weights(len(values))):
        np.matmul(weights.astype(values.dtype), values[rows], out=result[block * _BLOCK : (block + 1) * _BLOCK])
    return result


@lru_cache(maxsize=256)
def _weights(size: int) -> Weights:
    """What _BLOCK neighbours of the 64 results are made of: rows of the image, and whole numbers of 2^-15 for them."""
    window = -(-size // (2 * _SIDE))
    box = _box(size, window)
    places = ((np.arange(_SIDE) + 0.5) * size / _SIDE).astype(np.int64)
    exact = box[places] @ box
    whole = np.round(exact * _WEIGHT_UNIT)
    whole[np.arange(_SIDE), places] += _WEIGHT_UNIT - whole.sum(axis=1)
    result = []
    for start in range(0, _SIDE, _BLOCK):
        part = whole[start : start + _BLOCK]
        used = np.flatnonzero(part.any(axis=0))
        rows = slice(int(used[0]), int(used[-1]) + 1)
        result.append((rows, part[:, rows].astype(np.float32)))
    return tuple(result)


def _box(size: int, window: int) -> npt.NDArray[np.float64]:
    """PDQ's box filter of `size` values as a matrix; at the borders it averages the values that there are."""
    place = np.arange(size)
    after = place[None, :] - place[:, None]
    inside = (after >= -((window - 1) // 2)) & (after <= window // 2)
    weights: npt.NDArray[np.float64] = inside / inside.sum(axis=1, keepdims=True)
    return weights
