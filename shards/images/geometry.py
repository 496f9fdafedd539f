"""How an image becomes the encoder's input: the part of a blend's `image` that compiler, loader and chat share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from shards.typed_json import OPTIONAL, PositiveCount

Fit = Literal["crop", "squash", "pad"]
PadColour = Literal["clip", "siglip", "imagenet", "black"]
Interpolation = Literal["bicubic", "bilinear", "lanczos"]

GridRule = Literal["ratio", "resolution"]
"""How the grid of an image is chosen. ratio: the closest to the image's ratio of width to height, as InternVL does it;
resolution: the one that keeps most of the image's pixels, and of those the smallest, as LLaVA-NeXT does it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The square, or each tile, has size x size pixels; the rest as in a blend's `image` (docs/blend.md)."""

    size: PositiveCount
    fit: Fit
    pad_colour: PadColour
    interpolation: Interpolation
    max_pixels: PositiveCount
    grid: Annotated[GridRule | None, OPTIONAL] = None
    tiles: Annotated[PositiveCount | None, OPTIONAL] = None
    """Most cells of an image's grid; None, as the other two, if every image is one square"""
    tiles_multi: Annotated[PositiveCount | None, OPTIONAL] = None
    """The same in samples of several images"""

    def most_tiles(self, num_images: int) -> int:
        """Most cells of the grid of each image in a sample of so many."""
        return (self.tiles if num_images == 1 else self.tiles_multi) or 1
