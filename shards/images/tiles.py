"""Tiles: which grid an image is fitted to, and the tiles of its canvas. Compiler, loader, chat and exports share this.

An image is brought to a canvas of columns x rows tiles, each as large as the encoder's square. Its tiles are those of
the canvas, row by row, and, if there is more than one, the overview: the whole image at the size of one tile.

    grid = choose_grid(1600, 900, geometry, most=6)     # Grid(columns=2, rows=1)
    grid.tiles                                          # 3: two and the overview
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shards.errors import ShardError
from shards.images.geometry import Geometry, GridRule

MAX_TILES = 1024
"""Most tiles of a grid: bounds what damaged or hostile metadata can ask for"""


class Grid(NamedTuple):
    """The grid of an image's canvas."""

    columns: int
    rows: int

    @property
    def tiles(self) -> int:
        """How many the encoder sees, with the overview."""
        cells = self.columns * self.rows
        return cells + 1 if cells > 1 else 1

    def canvas(self, size: int) -> tuple[int, int]:
        """Width and height in pixels; size: side of a tile."""
        return self.columns * size, self.rows * size


ONE_TILE = Grid(1, 1)


@functools.lru_cache(maxsize=64)
def grids(most: int) -> tuple[Grid, ...]:
    """All grids of at most `most` cells: those with fewer first, then those with fewer columns (InternVL)."""
    every = [Grid(columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    return tuple(sorted(every, key=lambda grid: (grid.columns * grid.rows, grid.columns)))


def choose_grid(width: int, height: int, geometry: Geometry, most: int) -> Grid:
    """The grid of at most `most` cells, the overview not counted, that suits an upright image best.

    width, height: in pixels. The rules are those of GridRule.
    """
    return _RULES[geometry.grid or "ratio"](width, height, geometry.size, grids(most))


def plan_grids(
    sizes: Sequence[tuple[int, int]], geometry: Geometry, *, most: int, budget: int | None = None
) -> tuple[list[Grid], int]:
    """The grids of a sample's images, and the most cells that each of them was allowed.

    sizes: width and height of each image, upright. most: cells that each may have. budget: the most tiles of all images
    together, overviews included. If they are more, every image is allowed fewer cells, one less at a time, down to one.
    """
    for allowed in range(most, 0, -1):
        planned = [choose_grid(*size, geometry, allowed) for size in sizes]
        if budget is None or sum(grid.tiles for grid in planned) <= budget:
            break
    return planned, allowed


def described(grid: Grid) -> dict[str, int]:
    """What the metadata of a sample's image says of its grid."""
    return {"columns": grid.columns, "rows": grid.rows}


def grids_of(images: object, where: str) -> tuple[Grid, ...]:
    """The grids that a sample's metadata states for its images. where: for messages. Raises ShardError."""
    if not isinstance(images, list):
        raise ShardError(f"{where}: images in its metadata are {type(images).__name__}; expected a list")
    return tuple(_stated(image, where) for image in images)


def _stated(image: Any, where: str) -> Grid:
    values = [image.get("columns"), image.get("rows")] if isinstance(image, Mapping) else [None, None]
    whole = [value for value in values if type(value) is int and value > 0]
    if len(whole) < 2 or whole[0] * whole[1] > MAX_TILES:
        raise ShardError(
            f"{where}: the grid of an image is {values[0]!r} x {values[1]!r}; expected columns and rows from 1 on, "
            f"{MAX_TILES} tiles at most; rebuild it, or see dsvl-prep verify"
        )
    return Grid(*whole)


def cut(canvas: npt.NDArray[np.uint8], grid: Grid, out: npt.NDArray[np.uint8]) -> None:
    """Write a canvas's cells, row by row, to the first elements of `out`.

    canvas: uint8 [rows * S, columns * S, 3]. out: uint8 [tiles, S, S, 3], C-contiguous.
    """
    columns, rows = grid
    size = out.shape[1]
    cells = out[: columns * rows].reshape(rows, columns, size, size, 3)
    cells[...] = canvas.reshape(rows, size, columns, size, 3).transpose(0, 2, 1, 3, 4)


def _by_ratio(width: int, height: int, size: int, choices: Sequence[Grid]) -> Grid:
    """InternVL's `find_closest_aspect_ratio`; of grids with equal ratios the largest that is below twice the image."""
    ratio = width / height
    best, least = ONE_TILE, float("inf")
    for grid in choices:
        difference = abs(ratio - grid.columns / grid.rows)
        if difference < least:
            best, least = grid, difference
        elif difference == least and width * height > 0.5 * size * size * grid.columns * grid.rows:
            best = grid
    return best


def _by_resolution(width: int, height: int, size: int, choices: Sequence[Grid]) -> Grid:
    """LLaVA-NeXT's `select_best_resolution`: most of the image's own pixels, then least of the canvas wasted."""

    def merit(grid: Grid) -> tuple[int, int]:
        wide, high = grid.canvas(size)
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - wide * high

    return max(choices, key=merit)


_RULES: Mapping[GridRule, Callable[[int, int, int, Sequence[Grid]], Grid]] = {
    "ratio": _by_ratio,
    "resolution": _by_resolution,
}
