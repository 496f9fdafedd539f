"""`dsvl-prep diff --html`: the differences of two builds in one file that needs no network and runs no script.

Texts and names come from data: the template escapes them, and a content security policy forbids scripts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dst.common.html_pages import page_environment, page_policy
from preprocess.views.diff import BuildDifferences
from preprocess.views.diff_samples import ASPECTS, ImagePlace, SampleDifference
from preprocess.views.diff_terminal import change_of, dataset_lines, image_line, number_of, place_of, units_of
from preprocess.views.diff_words import Piece, shorten
from shards import Build
from shards.files import replace_file
from shards.images.page_images import PageImage, page_image

MAX_SAMPLES = 500
MAX_IMAGES = 600
"""On the page. Photos then take less than about 20 MB."""

_SIDE = 256
_KEEP = 400  # characters of unchanged text next to a change


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPair:
    """An image in both builds, and a sentence about it; None where a build does not have it."""

    line: str
    old: PageImage | None
    new: PageImage | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSample:
    """A sample with shortened texts. images_left_out: pairs for which the page has no room."""

    sample: SampleDifference
    text: tuple[Piece, ...]
    labels: tuple[Piece, ...]
    images: tuple[ShownPair, ...]
    images_left_out: int


def write_diff_page(page: Path, differences: BuildDifferences, old: Build, new: Build) -> None:
    """Write what `compare_builds(old, new)` found; the page says what it leaves out. Raises OSError."""
    html = (
        page_environment(Path(__file__).parent)
        .get_template("diff.html.jinja")
        .render(
            policy=page_policy(),
            differences=differences,
            samples=[*_shown(differences.samples[:MAX_SAMPLES], old, new)],
            aspects=ASPECTS,
            number_of=number_of,
            change_of=change_of,
            dataset_lines=dataset_lines,
            place_of=place_of,
            units=units_of(differences),
        )
    )
    replace_file(page, html.encode())


def _shown(samples: Sequence[SampleDifference], old: Build, new: Build) -> Iterator[ShownSample]:
    room = MAX_IMAGES
    for sample in samples:
        pairs = []
        for image in sample.images:
            needed = (image.old is not None) + (image.new is not None)
            if needed > room:
                break
            room -= needed
            pairs.append(ShownPair(line=image_line(image), old=_image(old, image.old), new=_image(new, image.new)))
        yield ShownSample(
            sample=sample,
            text=shorten(sample.text, _KEEP),
            labels=shorten(sample.labels, _KEEP),
            images=tuple(pairs),
            images_left_out=len(sample.images) - len(pairs),
        )


def _image(build: Build, place: ImagePlace | None) -> PageImage | None:
    if place is None:
        return None
    return page_image(place.name, lambda: bytes(build[place.split][place.index].images[place.number]), _SIDE)
