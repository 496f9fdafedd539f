"""What shards.images.pixels does to an upright image, by torch: eight times faster than Pillow, and close to it."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

from shards.images.geometry import Geometry, Interpolation
from shards.images.pixels import PAD_COLOURS, padded_size, scaled_size
from shards.images.tiles import Grid

Pixels = npt.NDArray[np.uint8]

_MODES: Mapping[Interpolation, str] = {"bicubic": "bicubic", "bilinear": "bilinear"}  # torch has no Lanczos filter


def can_resize(geometry: Geometry) -> bool:
    """Whether torch is installed and has the geometry's filter."""
    return geometry.interpolation in _MODES and _has_torch()


def fit_torch(pixels: Pixels, geometry: Geometry, grid: Grid, out: Pixels) -> None:
    """What `shards.images.pixels.fit` does to upright RGB pixels [H, W, 3], into `out` [rows * S, columns * S, 3]."""
    if geometry.fit == "pad":
        pixels = _bordered(pixels, geometry, grid)
    height, width, _ = pixels.shape
    wide, high = scaled_size(width, height, geometry, grid)
    scaled = resized_torch(pixels, (wide, high), geometry)
    canvas_width, canvas_height = grid.canvas(geometry.size)
    left, top = (wide - canvas_width) // 2, (high - canvas_height) // 2
    out[...] = scaled[top : top + canvas_height, left : left + canvas_width]


def resized_torch(pixels: Pixels, size: tuple[int, int], geometry: Geometry) -> Pixels:
    """uint8 [H, W, 3] -> [high, wide, 3], as Pillow's resize does it. size: width and height."""
    import torch

    (wide, high), mode = size, _MODES[geometry.interpolation]
    height, width, _ = pixels.shape
    # The batch axis is made by reshape, which gives it an honest stride: with the one that indexing or unsqueeze give,
    # torch answers in planes instead of channels-last memory, and everything takes half as long again.
    planes = torch.from_numpy(pixels.reshape(1, height, width, 3)).permute(0, 3, 1, 2)
    if height - high > max(0, 2 * (width - wide)) and _tall_first():
        planes = torch.nn.functional.interpolate(planes, (high, width), mode=mode, antialias=True)
    planes = torch.nn.functional.interpolate(planes, (high, wide), mode=mode, antialias=True)
    scaled: Pixels = planes.permute(0, 2, 3, 1).numpy()[0]
    return scaled


def _bordered(pixels: Pixels, geometry: Geometry, grid: Grid) -> Pixels:
    """In the middle of a rectangle of the padding's colour that has the grid's ratio."""
    height, width, _ = pixels.shape
    full_width, full_height = padded_size(width, height, grid)
    left, top = (full_width - width) // 2, (full_height - height) // 2
    whole = np.empty((full_height, full_width, 3), np.uint8)
    whole[...] = PAD_COLOURS[geometry.pad_colour]
    whole[top : top + height, left : left + width] = pixels
    return whole


@functools.cache
def _tall_first() -> bool:
    """Whether this Pillow resizes vertically first where an image loses more than twice as many rows as columns.

    Pillow has done so since version 13; before it, and always in torch, the horizontal pass comes first. Bicubic
    overshoots, each pass cuts that off, and so the order shows: by 4 of 255, on average, in black and white specks.
    """
    checks = Image.fromarray(np.indices((12, 4)).sum(axis=0).astype(np.uint8) % 2 * 255)
    vertical = checks.resize((4, 6), Image.Resampling.BICUBIC)
    both = vertical.resize((5, 6), Image.Resampling.BICUBIC)
    return np.array_equal(np.asarray(checks.resize((5, 6), Image.Resampling.BICUBIC)), np.asarray(both))


@functools.cache
def _has_torch() -> bool:
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True
