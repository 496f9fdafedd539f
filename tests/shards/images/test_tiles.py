"""Grids, canvases and tiles, compared with transformers' own functions and with a slow twin in Pillow."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.errors import ShardError
from shards.images.decode import DECODERS, decode_pillow
from shards.images.geometry import Fit, Geometry
from shards.images.pixels import PAD_COLOURS
from shards.images.tiles import ONE_TILE, Grid, choose_grid, cut, grids, grids_of, plan_grids
from tests.support.decoded_images import IMAGES, photo, seen
from tests.support.image_files import encoded

RATIO = Geometry(size=32, fit="squash", pad_colour="clip", interpolation="bicubic", max_pixels=10**8, tiles=6)
RESOLUTION = replace(RATIO, grid="resolution")
SIDES = st.integers(1, 4000)


@given(width=SIDES, height=SIDES, size=st.sampled_from([14, 32, 336, 448]), most=st.integers(1, 13))
def test_the_ratio_rule_is_that_of_transformers_internvl(width: int, height: int, size: int, most: int) -> None:
    module = pytest.importorskip("transformers.models.got_ocr2.image_processing_got_ocr2")
    expected = module.get_optimal_tiled_canvas((height, width), (size, size), 1, most)
    assert choose_grid(width, height, replace(RATIO, size=size), most) == Grid(*expected)


@given(width=SIDES, height=SIDES, size=st.sampled_from([14, 32, 336]), most=st.integers(1, 13))
def test_the_resolution_rule_is_that_of_transformers_llava_next(width: int, height: int, size: int, most: int) -> None:
    utils = pytest.importorskip("transformers.image_processing_utils")
    choices = [(grid.rows * size, grid.columns * size) for grid in grids(most)]
    high, wide = utils.select_best_resolution((height, width), choices)
    chosen = choose_grid(width, height, replace(RESOLUTION, size=size), most)
    assert (chosen.columns * size, chosen.rows * size) == (wide, high)


@pytest.mark.parametrize(
    ("size", "most", "expected"),
    [
        ((640, 480), 6, (Grid(3, 2), Grid(2, 2))),
        ((336, 336), 6, (Grid(1, 1), Grid(1, 1))),
        ((700, 700), 6, (Grid(2, 2), Grid(2, 2))),
        ((200, 40000), 6, (Grid(1, 6), Grid(1, 6))),
        ((40000, 200), 12, (Grid(12, 1), Grid(12, 1))),
        ((30, 20), 6, (Grid(3, 2), Grid(1, 1))),
        ((1, 1), 1, (Grid(1, 1), Grid(1, 1))),
    ],
    ids=str,
)
def test_strips_and_small_images_get_a_grid(size: tuple[int, int], most: int, expected: tuple[Grid, Grid]) -> None:
    geometries = replace(RATIO, size=336), replace(RESOLUTION, size=336)
    assert tuple(choose_grid(*size, geometry, most) for geometry in geometries) == expected


@given(
    sizes=st.lists(st.tuples(SIDES, SIDES), max_size=5),
    most=st.integers(1, 8),
    budget=st.none() | st.integers(0, 40),
)
def test_a_plan_has_as_many_tiles_as_fit_and_is_the_same_for_all_images(
    sizes: list[tuple[int, int]], most: int, budget: int | None
) -> None:
    planned, allowed = plan_grids(sizes, RATIO, most=most, budget=budget)
    assert planned == [choose_grid(*size, RATIO, allowed) for size in sizes]

    def tiles(cells: int) -> int:
        return sum(choose_grid(*size, RATIO, cells).tiles for size in sizes)

    if budget is None or tiles(most) <= budget:
        assert allowed == most
    else:
        assert all(tiles(more) > budget for more in range(allowed + 1, most + 1))
        assert tiles(allowed) <= budget or allowed == 1


def by_hand(data: bytes, geometry: Geometry, grid: Grid, is_canvas: bool) -> list[np.ndarray[Any, Any]]:
    """The tiles by Pillow, one crop after the other."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    size, (columns, rows) = geometry.size, grid
    whole = image
    if geometry.fit == "pad":
        width = max(image.width, -(-image.height * columns // rows))
        height = max(image.height, -(-image.width * rows // columns))
        whole = Image.new("RGB", (width, height), PAD_COLOURS[geometry.pad_colour])
        whole.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    canvas = whole.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
    boxes = [(x * size, y * size, (x + 1) * size, (y + 1) * size) for y in range(rows) for x in range(columns)]
    tiles = [np.asarray(canvas.crop(box)) for box in boxes]
    if len(tiles) > 1:
        if is_canvas or geometry.fit == "pad":
            tiles.append(np.asarray(canvas.resize((size, size), Image.Resampling.BOX)))
        else:
            tiles.append(np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)))
    return tiles


@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize("grid", [Grid(1, 1), Grid(2, 1), Grid(1, 3), Grid(3, 2)], ids=str)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("is_canvas", [True, False], ids=["canvas", "original"])
def test_tiles_are_the_cells_of_the_canvas_row_by_row_and_then_the_overview(
    is_canvas: bool, form: str, grid: Grid, fit: Fit
) -> None:
    geometry = replace(RATIO, fit=fit)
    for size in ((150, 90), (61, 200), grid.canvas(geometry.size), (5, 4)):
        data = encoded(photo(*size), form)
        expected = np.stack(by_hand(data, geometry, grid, is_canvas))
        assert len(expected) == grid.tiles
        if is_canvas or fit == "pad":  # Pillow's reduce and its box filter round halves differently
            assert np.abs(decode_pillow(data, geometry, grid, is_canvas=is_canvas) - expected.astype(int)).max() <= 1
            expected = decode_pillow(data, geometry, grid, is_canvas=is_canvas)
        assert np.array_equal(decode_pillow(data, geometry, grid, is_canvas=is_canvas), expected)
        for name, tolerance in (("exact", 0.0), ("fast", 1.5)):
            batch = np.full((grid.tiles + 2, 32, 32, 3), 9, np.uint8)
            DECODERS[name](data, geometry, batch[1:-1], grid, is_canvas=is_canvas)
            assert np.abs(batch[1:-1].astype(float) - expected).mean() <= tolerance, (name, size)
            assert (batch[[0, -1]] == 9).all(), "nothing is written beside the image's tiles"


@given(columns=st.integers(1, 4), rows=st.integers(1, 4), seed=st.integers(0, 99))
def test_cells_are_cut_row_by_row_and_none_is_lost(columns: int, rows: int, seed: int) -> None:
    grid = Grid(columns, rows)
    canvas = np.random.default_rng(seed).integers(0, 256, (rows * 5, columns * 5, 3), np.uint8)
    tiles = np.zeros((grid.tiles, 5, 5, 3), np.uint8)
    cut(canvas, grid, tiles)
    lines = [np.concatenate(tiles[row * columns : (row + 1) * columns], axis=1) for row in range(rows)]
    assert np.array_equal(np.concatenate(lines), canvas)


@pytest.mark.parametrize(
    ("images", "named"),
    [
        ({}, "images in its metadata are dict"),
        ([{}], "None x None"),
        ([{"columns": 0, "rows": 1}], "0 x 1"),
        ([{"columns": 2.0, "rows": 1}], "2.0 x 1"),
        ([{"columns": True, "rows": 1}], "True x 1"),
        ([{"columns": 10**6, "rows": 10**6}], "1000000 x 1000000"),
        ([7], "None x None"),
    ],
)
def test_metadata_that_states_no_grid_is_refused(images: object, named: str) -> None:
    with pytest.raises(ShardError, match=named):
        grids_of(images, "shard: sample a")
    assert grids_of([{"columns": 1, "rows": 1}], "") == (ONE_TILE,)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", ["orientation 6", "png orientation 3", "palette", "alpha", "gray", "CMYK"])
def test_the_overview_is_of_the_image_as_seen(kind: str, name: str) -> None:
    data = IMAGES[kind]
    grid = Grid(2, 3)
    tiles = np.zeros((grid.tiles, 32, 32, 3), np.uint8)
    DECODERS[name](data, RATIO, tiles, grid)
    expected = np.asarray(seen(data).resize((32, 32), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(tiles[-1] - expected).mean() <= (0 if name == "exact" else 1.5)
