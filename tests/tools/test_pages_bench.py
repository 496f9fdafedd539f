"""The drawn pages of the benchmark of tiles: what is on them, and their records."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFont

from tools.bench.reading.pages import CELL, COLOURS, DIGITS, PAGE, SIDE, Layout, Page, draw_page
from tools.bench.reading.records import HELD_OUT, TRAIN, blend_of, write_records

TILE = Layout(columns=1, rows=1, fields=(1, 3), digits=2)


def read_field(page: Page, colour: str) -> str:
    """The code in the field of this colour, read from the pixels alone: the closest digit of each cell."""
    pixels = np.asarray(page.image).astype(int)
    is_field = (pixels == COLOURS[colour]).all(2)
    cells = [
        (slice(top, top + CELL), slice(left, left + CELL))
        for top, left in itertools.product(range(0, len(pixels), CELL), range(0, pixels.shape[1], CELL))
    ]
    return "".join(_digit(pixels[cell], COLOURS[colour]) for cell in cells if is_field[cell].any())


def _digit(cell: npt.NDArray[np.int_], colour: tuple[int, int, int]) -> str:
    drawings = itertools.product(DIGITS, (0, 1), (0, 1))
    return min(drawings, key=lambda drawing: int(np.abs(_drawn(colour, *drawing) - cell).sum()))[0]


@functools.cache
def _drawn(colour: tuple[int, int, int], digit: str, right: int, down: int) -> npt.NDArray[np.int_]:
    image = Image.new("RGB", (CELL, CELL), colour)
    font = ImageFont.load_default(size=9)
    ImageDraw.Draw(image).text((right, down), digit, fill="black", font=font, anchor="lt")
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("layout", [PAGE, TILE])
def test_the_codes_are_drawn_in_the_fields_of_their_colours(layout: Layout) -> None:
    for seed in range(10):
        page = draw_page(f"page {seed}", layout)
        assert {colour: read_field(page, colour) for colour in page.codes} == page.codes


def test_a_page_has_the_size_of_its_grid_and_a_field_in_each_tile() -> None:
    page = draw_page("any", PAGE)
    assert page.image.size == (PAGE.columns * SIDE, PAGE.rows * SIDE)
    assert sorted(page.codes) == sorted(COLOURS)
    for column, row in itertools.product(range(PAGE.columns), range(PAGE.rows)):
        tile = page.image.crop((column * SIDE, row * SIDE, (column + 1) * SIDE, (row + 1) * SIDE))
        colours = {pixel for _, pixel in tile.getcolors(SIDE * SIDE) or ()}
        assert len(colours & set(COLOURS.values())) == 1


def test_a_seed_draws_the_same_page_again_and_another_seed_another_page() -> None:
    first, again, other = (draw_page(seed, PAGE) for seed in ("7", "7", "8"))
    assert (first.image.tobytes(), dict(first.codes)) == (again.image.tobytes(), dict(again.codes))
    assert first.image.tobytes() != other.image.tobytes()


def test_the_order_of_the_fields_does_not_say_where_they_are() -> None:
    tiles = set()
    for seed in range(80):
        page = draw_page(str(seed), PAGE)
        first = COLOURS[next(iter(page.codes))]
        ys, xs = np.nonzero((np.asarray(page.image) == first).all(2))
        tiles.add((int(xs[0]) // SIDE, int(ys[0]) // SIDE))
    assert len(tiles) == PAGE.columns * PAGE.rows


def test_records_ask_for_each_field_once_and_held_out_pages_share_no_image_with_others(tmp_path: Path) -> None:
    write_records(tmp_path, PAGE, train=30, held_out=10)
    pixels: dict[str, set[bytes]] = {}
    for name, count in ((TRAIN, 30), (HELD_OUT, 10)):
        records = json.loads((tmp_path / f"{name}.json").read_text())
        assert len(records) == count
        pixels[name] = {Image.open(tmp_path / "images" / record["image"]).tobytes() for record in records}
        for index, record in enumerate(records):
            codes = draw_page(f"{name} {index}", PAGE).codes
            questions, answers = record["conversations"][::2], record["conversations"][1::2]
            assert [answer["value"] for answer in answers] == list(codes.values())
            asked = [question["value"] for question in questions]
            assert [colour in text for colour, text in zip(codes, asked, strict=True)] == [True] * len(codes)
            assert [text.count("<image>") for text in asked] == [1, *[0] * (len(codes) - 1)]
    assert len(pixels[TRAIN]) == 30
    assert not pixels[TRAIN] & pixels[HELD_OUT]


def test_a_blend_without_held_out_pages_has_no_dataset_of_them(tmp_path: Path) -> None:
    write_records(tmp_path / "lesson", TILE, train=2, held_out=0)
    write_records(tmp_path / "pages", PAGE, train=2, held_out=1)
    names = {
        folder: [dataset["name"] for dataset in blend_of(tmp_path / folder, tmp_path, 6)["datasets"]]
        for folder in ("lesson", "pages")
    }
    assert names == {"lesson": [TRAIN], "pages": [TRAIN, HELD_OUT]}
