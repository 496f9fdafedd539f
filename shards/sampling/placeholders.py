"""Placeholders of images, one token each in a sample, expanded to the tokens of the image's tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shards.images.tiles import Grid


class Expansion(NamedTuple):
    """How S tokens with placeholders become T tokens with expanded images."""

    length: int
    """T"""
    text: tuple[tuple[slice, slice], ...]
    """Runs of text: where they are in the S tokens, and where in the T tokens"""
    image_starts: tuple[int, ...]
    """First token of each image in the T tokens"""
    tile_starts: tuple[int, ...]
    """First token of each tile, in the order of images and of their tiles"""

    def write(self, values: npt.NDArray[Any], out: npt.NDArray[Any], *, image_value: int) -> None:
        """Write one value per token, [S], to `out` [T]; all tokens of images get `image_value`."""
        if self.image_starts:
            out.fill(image_value)
        for source, target in self.text:
            out[target] = values[source]


def expand(
    ids: npt.NDArray[Any], *, image_id: int, image_tokens: int, grids: Sequence[Grid] | None = None
) -> Expansion:
    """The expansion of ids [S] in which each `image_id` stands for an image of `image_tokens` tokens for each tile.

    grids: of each image; placeholders beyond them, and all without grids, have one tile.
    """
    text: list[tuple[slice, slice]] = []
    image_starts: list[int] = []
    tile_starts: list[int] = []
    source = target = 0
    for placeholder in (*np.flatnonzero(ids == image_id).tolist(), len(ids)):
        end = target + placeholder - source
        if end > target:
            text.append((slice(source, placeholder), slice(target, end)))
        if placeholder < len(ids):
            image_starts.append(end)
            if grids is None or len(image_starts) > len(grids):
                tile_starts.append(end)
                end += image_tokens
            else:
                first, end = end, end + grids[len(image_starts) - 1].tiles * image_tokens
                tile_starts += range(first, end, image_tokens)
        source, target = placeholder + 1, end
    return Expansion(target, tuple(text), tuple(image_starts), tuple(tile_starts))
