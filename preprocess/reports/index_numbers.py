"""What the manifest and the indexes of a build say: exact numbers over all samples, and no sample is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from preprocess.conversation import NOTES, REASONS
from preprocess.reports.histograms import histogram_table
from preprocess.reports.parts import Part
from preprocess.reports.shared_contents import shared_tables
from preprocess.reports.sharing import sharing_tables
from preprocess.reports.tables import Drawing, Table, Value
from preprocess.views.packing_report import packing_report
from shards import Build

_RECORDS = "Each branch of a sample is a record; a sample without branches is one."


def index_tables(build: Build, parts: Sequence[Part], max_length: int) -> Iterator[Table]:
    """The tables that need no sample. max_length: of packed sequences."""
    yield _mixture(build, parts)
    yield _contents(parts)
    yield _epoch(build, parts)
    by_split = {split: [part for part in parts if part.split == split] for split in build.splits}
    histograms = (
        ("lengths", "Length", "tokens of a sample, images included", "lengths"),
        ("trained_tokens", "Trained tokens", "trained tokens of a sample", "trained"),
        ("images", "Images", "images of a sample", "images"),
    )
    for name, title, unit, field in histograms:
        values = {
            split: np.concatenate([getattr(part, field) for part in members])
            for split, members in by_split.items()
            if members
        }
        if values:
            yield histogram_table(name, title, f"How many samples have this many {unit}.", values, unit=unit)
    if build.manifest.has_tiles:
        tiles = {
            split: np.concatenate([part.tiles for part in members]) for split, members in by_split.items() if members
        }
        text = "How many images have this many tiles of an image, the overview included."
        yield histogram_table("tiles", "Tiles", text, tiles, unit="tiles of an image")
    yield from sharing_tables(build, parts)
    yield _fill(build, max_length)
    yield _counted(build, "rejects", "Rejects", "Records that did not become part of a sample.", REASONS)
    yield _counted(build, "notes", "Notes", "What was changed in samples on the way.", NOTES)
    yield _filtered(build)
    yield from shared_tables(parts)


def asked_draws(build: Build) -> Mapping[str, float]:
    """Dataset -> draws of it in an epoch as the blend asks for them, before they are made whole numbers.

    Draws count samples; of a dataset whose samples have branches, records.
    """
    blend = build.manifest.config.blend
    weights = {each["name"]: each.get("weight") or 0 for each in blend["datasets"]}
    total = (blend.get("total") or 0) / (sum(weights.values()) or 1)
    asked = {}
    for each in blend["datasets"]:
        size = build.manifest.datasets[each["name"]].shards["train"].records
        if weights[each["name"]]:
            asked[each["name"]] = weights[each["name"]] * total
        elif each.get("epochs"):
            asked[each["name"]] = float(each["epochs"]) * size
        else:
            asked[each["name"]] = float(size if each.get("samples") == "all" else each.get("samples") or 0)
    return asked


def _mixture(build: Build, parts: Sequence[Part]) -> Table:
    """Shares of an epoch. A dataset's tokens in it are the mean of its samples times the draws of samples."""
    asked = asked_draws(build)
    datasets = build.manifest.datasets
    train = {part.dataset: part for part in parts if part.split == "train"}
    totals = {
        field: {name: _in_epoch(part, field, build.epoch_draws(name)) for name, part in train.items()}
        for field in ("lengths", "trained", "images")
    }
    draws = {name: datasets[name].draws for name in build.datasets}
    rows: list[list[Value]] = [
        [
            name,
            _share(asked, name),
            _share(draws, name),
            *(_share(totals[field], name) for field in ("lengths", "trained", "images")),
            draws[name],
        ]
        for name in build.datasets
    ]
    shares = ("asked", "records", "tokens", "trained_tokens", "images")
    return Table(
        name="mixture",
        title="Mixture",
        text="Shares of an epoch: what the blend asks for, and what records, tokens, trained tokens and images are. "
        f"{_RECORDS} Tokens and images are means of a dataset's training samples times the draws of samples.",
        columns=("dataset", *shares, "records_drawn"),
        rows=rows,
        drawing=Drawing(
            kind="bars",
            labels=("dataset",),
            columns=shares,
            shown=("asked for", "records", "tokens", "trained tokens", "images"),
            unit="share of an epoch",
        ),
    )


def _contents(parts: Sequence[Part]) -> Table:
    return Table(
        name="contents",
        title="Contents",
        text=f"What the shards hold. {_RECORDS}",
        columns=("dataset", "split", "records", "samples", "images", "tokens", "trained_tokens", "longest"),
        rows=[
            [
                part.dataset,
                part.split,
                int(part.records.sum()),
                len(part.lengths),
                int(part.images.sum()),
                int(part.lengths.sum()),
                int(part.trained.sum()),
                int(part.lengths.max(initial=0)),
            ]
            for part in parts
        ],
    )


def _epoch(build: Build, parts: Sequence[Part]) -> Table:
    train = {part.dataset: part for part in parts if part.split == "train"}
    rows: list[list[Value]] = []
    for name in build.datasets:
        shards, draws = build.manifest.datasets[name].shards["train"], build.epoch_draws(name)
        records_drawn = sum(count * number for count, number in draws.items())
        not_shown = sum(max(0, size - draws[count]) for count, size in shards.by_records.items())
        times_shown = records_drawn / shards.records if shards.records else 0.0
        shown = (round(_in_epoch(train.get(name), field, draws)) for field in ("lengths", "trained", "images"))
        samples = sum(shards.samples), sum(draws.values())
        rows.append([name, shards.records, records_drawn, *samples, times_shown, not_shown, *shown])
    return Table(
        name="epoch",
        title="One epoch",
        text="How often an epoch shows a training record on average, and how many samples it does not show. "
        f"{_RECORDS} Tokens and images are means of the training samples times the draws of samples.",
        columns=(
            "dataset",
            "records",
            "records_drawn",
            "samples",
            "samples_drawn",
            "times_shown",
            "samples_not_shown",
            "tokens",
            "trained_tokens",
            "images",
        ),
        rows=rows,
    )


def _fill(build: Build, max_length: int) -> Table:
    longest = build.manifest.config.limits.max_length
    rows: list[list[Value]] = []
    for length in sorted({max_length, max(1, longest // 2), longest, longest * 2, longest * 4}):
        report = packing_report(build, length)
        if report is not None:
            rows.append([length, report.packed, report.padded, report.sequences, report.samples, report.too_long])
    return Table(
        name="sequence_fill",
        title="Sequence fill",
        text="Share of a sequence's tokens that hold a sample, packed and padded in batches of 16. "
        "Samples that are too long for a sequence are left out.",
        columns=("max_length", "packed", "padded", "sequences", "samples", "too_long"),
        rows=rows,
        drawing=Drawing(
            kind="bars", labels=("max_length",), columns=("packed", "padded"), shown=("packed", "padded"), unit="share"
        ),
    )


def _counted(build: Build, name: str, title: str, text: str, meanings: Mapping[str, str]) -> Table:
    """rejects or notes of every dataset."""
    rows: list[list[Value]] = [
        [dataset, what, count, meanings.get(what, "")]
        for dataset in build.datasets
        for what, count in getattr(build.manifest.datasets[dataset], name).items()
    ]
    return Table(
        name=name,
        title=title,
        text=text,
        columns=("dataset", "name", "records", "meaning"),
        rows=rows,
        drawing=Drawing(
            kind="bars", labels=("name", "dataset"), columns=("records",), shown=("records",), unit="records"
        ),
    )


def _filtered(build: Build) -> Table:
    rows: list[list[Value]] = [
        [dataset, rule, count]
        for dataset in build.datasets
        for rule, count in (build.manifest.datasets[dataset].filtered or {}).items()
    ]
    return Table(
        name="filtered",
        title="Filters",
        text="Records that a rule of a dataset's filter drops; they are among the rejects.",
        columns=("dataset", "rule", "records"),
        rows=rows,
    )


def _in_epoch(part: Part | None, field: str, draws: Mapping[int, int]) -> float:
    """The mean of training samples with 1, 2, 3, ... records times the draws of such samples, together."""
    if part is None:
        return 0.0
    values = getattr(part, field)
    return float(sum(values[part.records == count].mean() * number for count, number in draws.items() if number))


def _share(values: Mapping[str, float], name: str) -> float:
    total = sum(values.values())
    return values.get(name, 0.0) / total if total else 0.0
