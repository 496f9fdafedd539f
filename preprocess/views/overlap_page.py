"""`dsvl-prep overlap --html`: pairs of an overlap side by side, in one file that needs no network and runs no script.

Texts and names come from data: the template escapes them, and a content security policy forbids scripts.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dst.common.html_pages import page_environment, page_policy
from preprocess.compiler.reference_images import read_reference
from preprocess.views.overlap import Overlap
from shards.files import replace_file
from shards.images.page_images import PageImage, page_image

MAX_PAIRS = 250
"""On the page; of images, and of questions. Photos then take less than about 15 MB."""

_SIDE = 288


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturePair:
    first: PageImage
    second: PageImage
    match: str


def write_overlap_page(page: Path, overlap: Overlap, first: Path, second: Path) -> None:
    """Write what `find_overlap(first, second)` found; the page says how many pairs it leaves out.

    Every match by look comes before those by pixels and bytes, since they are the ones to judge. Raises OSError.
    """
    order = {"near": 0, "pixels": 1, "bytes": 2}
    ordered = sorted(overlap.pairs, key=lambda pair: order[pair[2]])
    with tempfile.TemporaryDirectory(prefix="dsvl-overlap-") as scratch:

        @cache
        def picture(place: Path, name: str) -> PageImage:
            return page_image(name, lambda: read_reference(place, name, Path(scratch)), _SIDE)

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
