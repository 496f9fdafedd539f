"""`dsvl-prep inspect --html`: sample pages as one file that needs no network.

Rule: a file for a browser stays small: many images are shown smaller, and the longest texts are cut and say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from dst.common.html_pages import page_environment, page_policy
from preprocess.errors import DataError
from preprocess.viewer.opened_build import OpenedBuild
from preprocess.viewer.pages import TEMPLATES
from preprocess.viewer.reject_images import images_of_record
from preprocess.viewer.rejects import RejectedRecord, RejectFilters
from preprocess.viewer.sample_page import SampleView, sample_view
from preprocess.viewer.selection import Filters, find_key, place_of, read_sample
from preprocess.viewer.source_records import SourceRecord
from shards import ShardError
from shards.files import replace_file
from shards.images.page_images import PageImage, page_image
from shards.images.thumbnails import side_for

Choice = Literal["random", "longest", "shortest", "most-images", "rejects"]
CHOICES: tuple[Choice, ...] = ("random", "longest", "shortest", "most-images", "rejects")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedSample:
    view: SampleView
    images: tuple[PageImage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedReject:
    reject: RejectedRecord
    record: SourceRecord
    images: tuple[PageImage, ...]


def write_samples_page(
    page: Path,
    build: str | Path,
    *,
    choice: Choice | None,
    limit: int,
    dataset: str | None = None,
    split: str | None = None,
    key: str | None = None,
    bases: tuple[Path, ...] = (),
) -> int:
    """Write the page; returns how many samples, or rejects, it shows. A damaged sample is shown as its fault.

    choice: which samples; None: the first of the build. bases: folders in which the blend file of the build may be, for
    the records of rejects. Raises DataError if nothing matches, ShardError for a build that cannot be opened.
    """
    opened = OpenedBuild(build)
    samples: list[ExportedSample] = []
    rejects: list[ExportedReject] = []
    if choice == "rejects":
        rejects = list(_rejects(opened, dataset, limit, bases))
    else:
        samples = _samples(opened, _numbers(opened, choice, limit, dataset, split, key))
    if not samples and not rejects:
        what = "reject" if choice == "rejects" else "sample"
        named = [text for text in (key, dataset, split) if text]
        raise DataError(f"{build}: no {what}" + (f" of {', '.join(named)}" if named else ""))
    manifest = opened.build.manifest
    environment = page_environment(TEMPLATES)
    script = environment.get_template("export.js").render()
    html = environment.get_template("export.html.jinja").render(
        policy=page_policy(script),
        location=str(build),
        samples=samples,
        rejects=rejects,
        num_samples=opened.num_samples,
        limits=manifest.config.limits,
        image_tokens=manifest.config.image_tokens,
        tokenizer=manifest.tokenizer,
        choice=choice or "build",
    )
    replace_file(page, html.encode())
    return len(samples) + len(rejects)


def _numbers(
    opened: OpenedBuild, choice: Choice | None, limit: int, dataset: str | None, split: str | None, key: str | None
) -> list[int]:
    if key is not None:
        number = find_key(opened.build, key)
        return [] if number is None else [number]
    order = "build" if choice is None or choice == "rejects" else choice
    selection = opened.selection(Filters(dataset=dataset or "", split=split or "", order=order))
    return list(islice(selection.every(), limit))


def _samples(opened: OpenedBuild, numbers: Sequence[int]) -> list[ExportedSample]:
    build = opened.build
    side = side_for(sum(opened.images_of(numbers)))
    exported = []
    for number in numbers:
        split, _ = place_of(build, number)
        try:
            dataset, sample = read_sample(build, number)
            view = sample_view(opened, sample, number=number, dataset=dataset, split=split)
            images = tuple(
                page_image(image.name, partial(bytes, data), side)
                for image, data in zip(view.images, sample.images, strict=True)
            )
        except ShardError as error:
            view, images = SampleView(number=number, split=split, fault=str(error)), ()
        exported.append(ExportedSample(view=view, images=images))
    return exported


def _rejects(opened: OpenedBuild, dataset: str | None, limit: int, bases: tuple[Path, ...]) -> Iterator[ExportedReject]:
    records = opened.source_records(bases)
    every = opened.rejects.every(RejectFilters(dataset=dataset or ""))
    for reject in islice(every, limit):
        record = records.read(reject.dataset, reject.file, reject.record)
        images = images_of_record(record.value, opened.build.manifest, reject.dataset, bases)
        yield ExportedReject(reject=reject, record=record, images=images)
