"""A 256-bit hash of how an image looks: few bits change when it is resized, re-encoded or slightly edited.

The construction is that of PDQ ("The TMK+PDQF video-hashing algorithm and the PDQ image-hashing algorithm", Facebook,
2019): reduce the luma to 64x64, take the 16x16 lowest frequencies of its DCT without the constant ones, and set each
bit whose coefficient is above their median. The image is reduced with Pillow's triangle filter instead of PDQ's two box
filters, so the bits are close to those of other programs for PDQ, and not equal to them.

Rule: the same pixels give the same hash on every machine. All sums are of whole numbers below 2^53, so float64 holds
them exactly, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

BITS = 256
_SIDE = 64
_FREQUENCIES = 16
_MIN_AVERAGED = 96
"""Fewest pixels that averaging leaves on the short side"""
_FLAT_GRADIENT = 2.0
"""Mean absolute difference of neighbours among the 64x64, of 255, below which an image counts as flat"""


def _dct_matrix() -> npt.NDArray[np.float64]:
    """Frequencies 1 to 16 of the DCT-II of 64 values, [16, 64], as whole numbers of 2^-14."""
    frequency = np.arange(1, _FREQUENCIES + 1)[:, None]
    position = np.arange(_SIDE)[None, :]
    return np.round(np.cos(np.pi * frequency * (2 * position + 1) / (2 * _SIDE)) * 2**14)


_DCT = _dct_matrix()


@dataclass(frozen=True, slots=True, kw_only=True)
class PerceptualHash:
    """words: four uint64, first bits first. flat: the image has too little detail for the hash to identify it."""

    words: tuple[int, int, int, int]
    flat: bool


def perceptual_hash(image: Image.Image) -> PerceptualHash:
    """The hash of an upright RGB image of any size."""
    luma = np.asarray(_reduced(image), dtype=np.float64)
    coefficients = _DCT @ luma @ _DCT.T
    bits = coefficients > np.median(coefficients)
    words = np.packbits(bits).view(">u8").tolist()
    gradient = np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()
    return PerceptualHash(words=tuple(words), flat=bool(gradient < _FLAT_GRADIENT))


def _reduced(image: Image.Image) -> Image.Image:
    """64x64 luma. A large image is first averaged over whole blocks, which takes a fraction of the time."""
    block = max(1, min(image.size) // _MIN_AVERAGED)
    return image.convert("L").reduce(block).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
