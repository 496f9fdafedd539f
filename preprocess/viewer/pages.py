"""Requests answered with pages: each function here makes the HTML of one page.

Rule: the build is read inside `OpenedBuilds.reading`, and rendered after it. A damaged sample is a fault in its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dst.common.html_pages import page_environment
from preprocess.viewer.attention import attended_ranges, mask_blocks
from preprocess.viewer.opened_build import OpenedBuild, OpenedBuilds
from preprocess.viewer.reject_images import images_of_record
from preprocess.viewer.requests import (
    filters_of,
    link,
    number_of,
    packed_settings_of,
    query_of,
    reject_filters_of,
    sequences_of,
)
from preprocess.viewer.sample_page import TOKENS_PAGE, Card, token_rows, view_sample
from preprocess.viewer.selection import ORDERS, Filters, Page, find_key, place_of, read_sample
from preprocess.viewer.source_records import SourceRecords
from shards import ShardError
from shards.format.records import records_of
from shards.images.page_images import PageImage

PAGE_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'"
)
POLICY = f"{PAGE_POLICY}; frame-ancestors 'none'"
"""As a header; browsers ignore its last part within a page."""
TEMPLATES = Path(__file__).parent / "templates"
_LONG_TEXT = 20_000
_RECORDS = 20


class Pages:
    """The pages of a build. bases: folders in which its blend file may have been."""

    def __init__(self, builds: OpenedBuilds, bases: tuple[Path, ...]) -> None:
        self._builds, self._bases = builds, bases
        self._environment = page_environment(TEMPLATES)

    def gallery(self, query: Mapping[str, str]) -> str:
        """Raises ConfigError for filters that do not fit the build, ShardError if it cannot be read."""
        filters = filters_of(query)
        before = number_of(query, "before")
        with self._builds.reading() as opened:
            selection = opened.selection(filters)
            page = selection.page(
                before if before is not None else number_of(query, "from") or 0, backward=before is not None
            )
            cards = [
                Card(sample=view_sample(opened, number), link=link(f"/number/{number}", filters, at=place))
                for number, place in zip(page.numbers, page.places, strict=True)
            ]
        return self._render(
            "gallery",
            opened,
            filters=filters,
            cards=cards,
            page=page,
            is_cut=page.is_cut,
            backward=before is not None,
            datasets=opened.build.datasets,
            notes=sorted({note for info in opened.build.manifest.datasets.values() for note in info.notes}),
            orders=ORDERS,
            has_branches=opened.build.manifest.has_branches,
            version=opened.build.manifest.hash[:12],
            num_samples=opened.num_samples,
            previous=link("/", filters, before=page.start) if page.start else None,
            following=link("/", filters, **{"from": page.end}) if page.end < page.total else None,
        )

    def sample(self, number: int, query: Mapping[str, str]) -> str:
        """Raises IndexError if there is no such sample."""
        filters, place = filters_of(query), number_of(query, "at")
        with self._builds.reading() as opened:
            sample = view_sample(opened, number)
            previous, following = _neighbours(opened, filters, number, place)
        manifest = opened.build.manifest
        version = manifest.hash[:12]
        images = [
            PageImage(name=image.name, source=f"/image/{number}/{index}?v={version}")
            for index, image in enumerate(sample.images)
        ]
        here = f"/number/{number}"
        return self._render(
            "sample",
            opened,
            sample=sample,
            image_sources=images,
            whole=query.get("whole") == "1",
            is_cut=any(len(piece.text) > _LONG_TEXT for turn in sample.all_turns for piece in turn.pieces),
            whole_link=link(here, filters, at=place, whole=1),
            num_samples=opened.num_samples,
            previous=previous,
            following=following,
            gallery=link("/", filters, **{"from": place}),
            limits=manifest.config.limits,
            image_tokens=manifest.config.image_tokens,
            tokenizer=manifest.tokenizer,
            template_name=_template_name(opened, sample.dataset),
            template_text=manifest.datasets[sample.dataset].template if sample.dataset else "",
        )

    def sample_of_key(self, key: str, query: Mapping[str, str]) -> str:
        """Raises IndexError if the build has no sample with this key."""
        with self._builds.reading() as opened:
            number = find_key(opened.build, key)
        if number is None:
            raise IndexError(f"no sample has the key {key[:100]!r} in this build")
        return self.sample(number, query)

    def tokens(self, number: int, query: Mapping[str, str]) -> str:
        start = number_of(query, "start") or 0
        with self._builds.reading() as opened:
            _, sample = read_sample(opened.build, number)
            image_tokens = opened.build.manifest.config.image_tokens
            rows = token_rows(sample, opened.tokenizer, image_tokens, start)
        end = start + len(rows)
        return self._render(
            "tokens",
            opened,
            key=sample.key,
            number=number,
            rows=rows,
            start=start,
            total=len(sample.ids),
            has_branches=sample.branch_ids is not None,
            image_tokens=image_tokens,
            has_tiles=opened.build.manifest.has_tiles,
            before=max(0, start - TOKENS_PAGE) if start else None,
            after=end if end < len(sample.ids) else None,
        )

    def record(self, number: int) -> str:
        """The records that a sample was made from."""
        with self._builds.reading() as opened:
            dataset, sample = read_sample(opened.build, number)
            records = records_of(sample, opened.build.manifest.tokenizer.image_id)
        sources = [(branch, *source) for branch, record in enumerate(records, start=1) for source in record.sources]
        reader = self._records(opened)
        read = [(branch, reader.read(dataset, file, record)) for branch, file, record in sources[:_RECORDS]]
        return self._render(
            "record",
            opened,
            key=sample.key,
            records=read,
            has_branches=sample.branch_ids is not None,
            more=max(0, len(sources) - _RECORDS),
        )

    def rejects(self, query: Mapping[str, str]) -> str:
        filters, before = reject_filters_of(query), number_of(query, "before")
        with self._builds.reading() as opened:
            rejects = opened.rejects
        start = before if before is not None else number_of(query, "from") or 0
        page = rejects.page(filters, start, backward=before is not None)
        counts: Counter[str] = Counter()
        for info in opened.build.manifest.datasets.values():
            counts.update(info.rejects)
        return self._render(
            "rejects",
            opened,
            filters=filters,
            page=page,
            backward=before is not None,
            counts=dict(counts.most_common()),
            datasets=opened.build.datasets,
            query=link("", filters),
            previous=link("/rejects", filters, before=page.start) if page.start else None,
            following=link("/rejects", filters, **{"from": page.end}) if page.end < page.total else None,
        )

    def reject(self, offset: int, query: Mapping[str, str]) -> str:
        """Raises IndexError if no line of rejects.jsonl starts at this byte."""
        filters = reject_filters_of(query)
        with self._builds.reading() as opened:
            rejects = opened.rejects
        reject = rejects.at(offset)
        previous, following = rejects.neighbours(filters, offset)
        record = self._records(opened).read(reject.dataset, reject.file, reject.record)
        return self._render(
            "reject",
            opened,
            reject=reject,
            record=record,
            images=images_of_record(record.value, opened.build.manifest, reject.dataset, self._bases),
            query=link("", filters),
            previous=None if previous is None else link(f"/reject/{previous}", filters),
            following=None if following is None else link(f"/reject/{following}", filters),
        )

    def sequences(self, query: Mapping[str, str]) -> str:
        """Packed sequences; `chosen`: what the tokens of one attend to; `sample`: from the sequence of a sample on."""
        asked, settings = sequences_of(query), packed_settings_of(query)
        with self._builds.reading() as opened:
            if asked.sample is not None:
                settings = replace(settings, split=place_of(opened.build, asked.sample)[0])
            pager = opened.sequences(settings)
            cursor = asked.cursor
            if asked.sample is not None:
                cursor_of_sample = pager.cursor_of(asked.sample)
                if cursor_of_sample is None:
                    raise IndexError(
                        "this sample is in no sequence of the first epoch of the split; see dsvl-prep stats"
                    )
                cursor = cursor_of_sample
            views, following = pager.page(cursor)
        chosen = next(
            (view for view in views if view.cursor == (asked.chosen if asked.sample is None else cursor)), None
        )
        token = min(asked.token, pager.max_length - 1)
        return self._render(
            "sequences",
            opened,
            sequences=views,
            settings=settings,
            max_length=pager.max_length,
            image_tokens=opened.build.manifest.config.image_tokens,
            has_tiles=opened.build.manifest.has_tiles,
            kind=asked.kind,
            chosen=chosen.cursor if chosen else None,
            blocks=mask_blocks(chosen.spans, asked.kind) if chosen else [],
            token=token,
            attended=attended_ranges(chosen.spans, token, asked.kind) if chosen else [],
            has_branches=any(span.branch for span in chosen.spans) if chosen else False,
            branch=next((span.branch for span in chosen.spans if span.start <= token < span.end), 0) if chosen else 0,
            hidden=query_of(settings)
            | {"kind": asked.kind, "cursor": cursor, "chosen": chosen.cursor if chosen else 0},
            link_to=lambda chosen_cursor: (
                link("/sequences", settings, kind=asked.kind, cursor=cursor, chosen=chosen_cursor)
                + f"#sequence-{chosen_cursor}"
            ),
            first=link("/sequences", settings, kind=asked.kind) if cursor else None,
            following=None if following is None else link("/sequences", settings, kind=asked.kind, cursor=following),
        )

    def fault(self, heading: str, fault: str) -> str:
        return self._render("fault", None, heading=heading, fault=fault)

    def _records(self, opened: OpenedBuild) -> SourceRecords:
        return opened.source_records(self._bases)

    def _render(self, name: str, opened: OpenedBuild | None, **values: Any) -> str:
        template = self._environment.get_template(f"{name}.html.jinja")
        return template.render(policy=PAGE_POLICY, location=str(opened.location) if opened else "", **values)


def _neighbours(opened: OpenedBuild, filters: Filters, number: int, place: int | None) -> tuple[str | None, str | None]:
    """Links to the samples before and after this one, in the order that the reader came from.

    If a search finds none in its time, the link is to the list, which searches on.
    """
    try:
        selection = opened.selection(filters)
        if place is None or place >= len(selection) or selection.number(place) != number:
            filters, place = Filters(), number  # a link to the sample alone: the order of the build
            selection = opened.selection(filters)
        before = selection.page(place, backward=True, most=1)
        after = selection.page(place + 1, most=1)
    except ShardError:
        return None, None
    previous = link("/", filters, before=before.start) if before.is_cut else None
    following = link("/", filters, **{"from": after.end}) if after.is_cut else None
    return _first_of(before, filters) or previous, _first_of(after, filters) or following


def _first_of(page: Page, filters: Filters) -> str | None:
    if not page.numbers:
        return None
    return link(f"/number/{page.numbers[0]}", filters, at=page.places[0] if filters != Filters() else None)


def _template_name(opened: OpenedBuild, dataset: str) -> str:
    blend = opened.build.manifest.config.blend
    own = next((each.get("template") for each in blend["datasets"] if each["name"] == dataset), None)
    return str(own or opened.build.manifest.config.template)
