"""What the manifest and the indexes of a build say: exact numbers over all samples, and no sample is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from preprocess.conversation import NOTES, REASONS
from preprocess.reports.histograms import histogram_table
from preprocess.reports.parts import Part
from preprocess.reports.shared_contents import shared_tables
from preprocess.reports.tables import Drawing, Table, Value
from preprocess.views.packing_report import packing_report
from shards import Build


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
    yield _fill(build, max_length)
    yield _counted(build, "rejects", "Rejects", "Records that did not become part of a sample.", REASONS)
    yield _counted(build, "notes", "Notes", "What was changed in samples on the way.", NOTES)
    yield _filtered(build)
    yield from shared_tables(parts)


def asked_draws(build: Build) -> Mapping[str, float]:
    """Dataset -> samples of it in an epoch as the blend asks for them, before they are made whole numbers."""
    blend = build.manifest.config.blend
    weights = {each["name"]: each.get("weight") or 0 for each in blend["datasets"]}
    total = (blend.get("total") or 0) / (sum(weights.values()) or 1)
    asked = {}
    for each in blend["datasets"]:
        size = build.manifest.datasets[each["name"]].splits["train"]
        if weights[each["name"]]:
            asked[each["name"]] = weights[each["name"]] * total
        elif each.get("epochs"):
            asked[each["name"]] = float(each["epochs"]) * size
        else:
            asked[each["name"]] = float(size if each.get("samples") == "all" else each.get("samples") or 0)
    return asked


def _mixture(build: Build, parts: Sequence[Part]) -> Table:
    """Shares of an epoch. A dataset's tokens in it are its mean times its draws."""
    asked = asked_draws(build)
    datasets = build.manifest.datasets
    train = {part.dataset: part for part in parts if part.split == "train"}
    totals = {
        field: {name: _in_epoch(part, field, datasets[name].draws) for name, part in train.items()}
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
    shares = ("asked", "samples", "tokens", "trained_tokens", "images")
    return Table(
        name="mixture",
        title="Mixture",
        text="Shares of an epoch: what the blend asks for, and what samples, tokens, trained tokens and images are. "
        "Tokens and images are the mean of a dataset's training samples times its draws.",
        columns=("dataset", *shares, "draws"),
        rows=rows,
        drawing=Drawing(
            kind="bars",
            labels=("dataset",),
            columns=shares,
            shown=("asked for", "samples", "tokens", "trained tokens", "images"),
            unit="share of an epoch",
        ),
    )


def _contents(parts: Sequence[Part]) -> Table:
    return Table(
        name="contents",
        title="Contents",
        text="What the shards hold.",
        columns=("dataset", "split", "samples", "images", "tokens", "trained_tokens", "longest"),
        rows=[
            [
                part.dataset,
                part.split,
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
        info = build.manifest.datasets[name]
        size = info.splits["train"]
        shown = (round(_in_epoch(train.get(name), field, info.draws)) for field in ("lengths", "trained", "images"))
        rows.append([name, size, info.draws, info.draws / size if size else 0.0, max(0, size - info.draws), *shown])
    return Table(
        name="epoch",
        title="One epoch",
        text="How often an epoch shows a training sample on average, and how many samples it does not show. "
        "Tokens and images are the mean of the training samples times the draws.",
        columns=(
            "dataset",
            "samples",
            "draws",
            "times_shown",
            "not_shown",
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


def _in_epoch(part: Part | None, field: str, draws: int) -> float:
    """The mean of a dataset's training samples times its draws."""
    return float(getattr(part, field).mean()) * draws if part is not None and len(part.lengths) else 0.0


def _share(values: Mapping[str, float], name: str) -> float:
    total = sum(values.values())
    return values.get(name, 0.0) / total if total else 0.0
