"""How an image becomes the encoder's square: the part of a blend's `image` that compiler, loader and chat share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shards.typed_json import PositiveCount

Fit = Literal["crop", "squash", "pad"]
PadColour = Literal["clip", "siglip", "imagenet", "black"]
Interpolation = Literal["bicubic", "bilinear", "lanczos"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The square has size x size pixels; `fit` and the rest as in a blend's `image` (docs/blend.md)."""

    size: PositiveCount
    fit: Fit
    pad_colour: PadColour
    interpolation: Interpolation
    max_pixels: PositiveCount
