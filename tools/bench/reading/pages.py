"""Pages whose fields hold codes in small type: readable at full size, grey spots when the page is squashed to one tile.

A page is a white grid of tiles. Fields have colours of their own, and lie in cells of 8 x 8 pixels, a digit in each.
All that is drawn depends on the seed alone.

    page = draw_page("train 7", PAGE)
    page.image                                # 64 x 96 pixels
    page.codes                                # {"red": "42", "green": "07", ...}
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIDE = 32
"""Of a tile in pixels"""
CELL = 8
"""Side of a digit's cell in pixels"""
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (255, 110, 110),
    "green": (110, 230, 110),
    "blue": (130, 150, 255),
    "yellow": (245, 235, 90),
    "pink": (255, 160, 230),
    "orange": (255, 180, 80),
}
DIGITS = "0123456789"
_TYPE_SIZE = 9
"""Digits are 6 pixels high"""
_SHIFT = 1
"""Most pixels that a code is moved to the right, and down, in its cells"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a page has. Fields are shared out over its tiles, and never cross the border of one."""

    columns: int
    """Of tiles"""
    rows: int
    fields: tuple[int, int]
    """The least and the most: at most one for each colour, and for each line of cells of a tile"""
    digits: int
    """Of each code"""


PAGE = Layout(columns=2, rows=3, fields=(6, 6), digits=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    image: Image.Image
    codes: Mapping[str, str]
    """The colour of each field -> its code, in the order of drawing"""


def draw_page(seed: str, layout: Layout) -> Page:
    """A page with random colours, codes and places of its fields."""
    choose = random.Random(seed)
    image = Image.new("RGB", (layout.columns * SIDE, layout.rows * SIDE), "white")
    tiles = [(column * SIDE, row * SIDE) for row in range(layout.rows) for column in range(layout.columns)]
    choose.shuffle(tiles)
    lines = {tile: choose.sample(range(SIDE // CELL), SIDE // CELL) for tile in tiles}
    codes = {}
    for index, colour in enumerate(choose.sample(list(COLOURS), choose.randint(*layout.fields))):
        codes[colour] = "".join(choose.choices(DIGITS, k=layout.digits))
        tile = tiles[index % len(tiles)]
        left = tile[0] + CELL * choose.randrange(SIDE // CELL - layout.digits + 1)
        top = tile[1] + CELL * lines[tile].pop()
        _draw_field(image, (left, top), colour, codes[colour], (choose.randint(0, _SHIFT), choose.randint(0, _SHIFT)))
    return Page(image=image, codes=codes)


def _draw_field(image: Image.Image, corner: tuple[int, int], colour: str, code: str, shift: tuple[int, int]) -> None:
    """corner, shift: in pixels, to the right and down."""
    draw = ImageDraw.Draw(image)
    left, top = corner
    draw.rectangle((left, top, left + CELL * len(code) - 1, top + CELL - 1), fill=COLOURS[colour])
    font = ImageFont.load_default(size=_TYPE_SIZE)
    for index, digit in enumerate(code):
        draw.text((left + CELL * index + shift[0], top + shift[1]), digit, fill="black", font=font, anchor="lt")
