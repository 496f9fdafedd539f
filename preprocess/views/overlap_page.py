"""`dsvl-prep overlap --html`: pairs of an overlap side by side, in one file that needs no network and runs no script.

Texts and names come from data: the template escapes them, and a content security policy forbids scripts.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dst.common.html_pages import page_environment, page_policy
from preprocess.compiler.reference_images import read_reference
from preprocess.errors import RejectError
from preprocess.views.overlap import Overlap
from shards.errors import ImageError
from shards.files import replace_file
from shards.images.thumbnails import thumbnail

MAX_PAIRS = 250
"""On the page; of images, and of questions. Photos then take less than about 15 MB."""

_SIDE = 288


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One image of a pair. problem: why it cannot be shown; then `source`, a data URL, is empty."""

    name: str
    source: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturePair:
    first: Picture
    second: Picture
    match: str


def write_overlap_page(page: Path, overlap: Overlap, first: Path, second: Path) -> None:
    """Write what `find_overlap(first, second)` found; the page says how many pairs it leaves out.

    Every match by look comes before those by pixels and bytes, since they are the ones to judge. Raises OSError.
    """
    order = {"near": 0, "pixels": 1, "bytes": 2}
    ordered = sorted(overlap.pairs, key=lambda pair: order[pair[2]])
    with tempfile.TemporaryDirectory(prefix="dsvl-overlap-") as scratch:

        @cache
        def picture(place: Path, name: str) -> Picture:
            return _picture(name, lambda: read_reference(place, name, Path(scratch)))

        pairs = [
            PicturePair(first=picture(first, left), second=picture(second, right), match=match)
            for left, right, match in ordered[:MAX_PAIRS]
        ]
    environment = page_environment(Path(__file__).parent)
    html = environment.get_template("overlap.html.jinja").render(
        policy=page_policy(),
        first=str(first),
        second=str(second),
        overlap=overlap,
        pairs=pairs,
        questions=overlap.questions.pairs[:MAX_PAIRS],
    )
    replace_file(page, html.encode())


def _picture(name: str, read: Callable[[], bytes]) -> Picture:
    try:
        small, width, height = thumbnail(read(), _SIDE)
    except (ImageError, RejectError, OSError) as error:
        return Picture(name=name, problem=str(error))
    source = f"data:image/jpeg;base64,{base64.b64encode(small).decode()}"
    return Picture(name=name, source=source, width=width, height=height)
