"""Images of a conversation: files as they are, and as the tiles that the encoder sees."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from shards.errors import ImageError
from shards.images.decode import exact, seen_size
from shards.images.geometry import Geometry
from shards.images.tiles import ONE_TILE, Grid
from trainer.errors import TrainError

MAX_BYTES = 1 << 30
"""Of an image file"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedImage:
    """An image file that can be decoded. size: width and height in pixels, as seen."""

    path: Path
    data: bytes = field(repr=False)
    geometry: Geometry
    size: tuple[int, int]
    _decoded: dict[Grid, torch.Tensor] = field(default_factory=dict, repr=False)

    def pixels(self, grid: Grid) -> torch.Tensor:
        """The encoder's input, uint8 [tiles, 3, S, S]. A grid's tiles are decoded once."""
        if grid not in self._decoded:
            self._decoded[grid] = image_pixels(self.data, self.geometry, grid)
        return self._decoded[grid]


def image_pixels(
    data: bytes | memoryview, geometry: Geometry, grid: Grid = ONE_TILE, *, is_canvas: bool = False
) -> torch.Tensor:
    """The encoder's input, uint8 [tiles, 3, S, S], from the bytes of an image file. Raises ImageError.

    is_canvas: the image is the canvas of its grid already, as `resized` builds store it.
    """
    pixels = np.empty((grid.tiles, geometry.size, geometry.size, 3), np.uint8)
    exact(data, geometry, pixels, grid, is_canvas=is_canvas)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def stack(pixels: Sequence[torch.Tensor], image_size: int) -> torch.Tensor:
    """The tiles of all images, uint8 [N, 3, S, S]; N may be 0."""
    return torch.cat(list(pixels)) if pixels else torch.zeros(0, 3, image_size, image_size, dtype=torch.uint8)


def opened_image(data: bytes, geometry: Geometry, path: Path) -> LoadedImage:
    """An image from the bytes of its file, decoded once. Raises ImageError."""
    image = LoadedImage(path=path, data=data, geometry=geometry, size=seen_size(data, geometry))
    image.pixels(ONE_TILE)
    return image


def load_image(path: Path, geometry: Geometry) -> LoadedImage:
    """Read an image file. Raises TrainError if it is missing or is not an image that can be decoded."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise TrainError(f"{path}: is not a file; expected an image")
        if status.st_size > MAX_BYTES:  # a video, for example, which would be read completely before it is refused
            raise TrainError(f"{path}: has {status.st_size:,} bytes; expected an image of at most {MAX_BYTES:,}")
        return opened_image(path.read_bytes(), geometry, path)
    except ImageError as error:
        raise TrainError(f"{path}: cannot be decoded: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise TrainError(f"{path}: cannot be read: {reason}; expected the path of an image") from None
