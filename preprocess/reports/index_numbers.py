"""What the manifest and the indexes of a build say: exact numbers over all samples, and no sample is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from preprocess.conversation import NOTES, REASONS
from preprocess.reports.histograms import histogram_table
from preprocess.reports.tables import Drawing, Table, Value
from preprocess.views.packing_report import packing_report
from shards import Build

_MOST_PAIRS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A dataset's side of the split. lengths: text tokens + images x image_tokens. images_shown: hashes, repeated.

    contents: a hash of each sample's tokens and images, by which equal samples are found.
    """

    dataset: str
    split: str
    lengths: npt.NDArray[np.int64]
    trained: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    images_shown: npt.NDArray[np.uint64]
    contents: npt.NDArray[np.uint64]


def read_parts(build: Build) -> list[Part]:
    """All indexes, one after the other. Memory: 40 bytes a sample, and 8 an image. Raises ShardError."""
    columns: dict[tuple[str, str], list[tuple[npt.NDArray[np.int64], ...]]] = {}
    shown: dict[tuple[str, str], list[npt.NDArray[np.uint64]]] = {}
    contents: dict[tuple[str, str], list[npt.NDArray[np.uint64]]] = {}
    for dataset, split, shard in build.shards():
        table = shard.index.table
        text, trained, images = (
            table.column(name).to_numpy().astype(np.int64) for name in ("text_tokens", "trained_tokens", "images")
        )
        columns.setdefault((dataset, split), []).append(
            (text + images * build.manifest.config.image_tokens, trained, images)
        )
        shown.setdefault((dataset, split), []).append(_hashes(table.column("groups")))
        contents.setdefault((dataset, split), []).append(_contents_hashes(table.column("member_checksums")))
        shard.forget_index()
    return [
        Part(
            dataset=dataset,
            split=split,
            lengths=np.concatenate([each[0] for each in shards]),
            trained=np.concatenate([each[1] for each in shards]),
            images=np.concatenate([each[2] for each in shards]),
            images_shown=np.concatenate(shown[dataset, split]),
            contents=np.concatenate(contents[dataset, split]),
        )
        for (dataset, split), shards in columns.items()
    ]


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
    yield _reuse(parts)
    yield _overlap(parts)
    yield _copies(parts)


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


def _reuse(parts: Sequence[Part]) -> Table:
    rows: list[list[Value]] = []
    for part in parts:
        images, counts = np.unique(part.images_shown, return_counts=True)
        if len(images):
            rows.append([part.dataset, part.split, len(images), float(counts.mean()), int(counts.max())])
    return Table(
        name="image_reuse",
        title="Images shown again",
        text="Different images, and in how many samples each is: on average, and the most used one.",
        columns=("dataset", "split", "images", "samples_each", "most"),
        rows=rows,
    )


def _overlap(parts: Sequence[Part]) -> Table:
    """Pairs of dataset sides that show the same images; the largest overlaps first."""
    images = [np.unique(part.images_shown) for part in parts]
    rows: list[list[Value]] = []
    for (first, first_images), (second, second_images) in combinations(zip(parts, images, strict=True), 2):
        both = len(np.intersect1d(first_images, second_images, assume_unique=True))
        if both:
            rows.append([_named(first), _named(second), both, "yes" if first.split != second.split else "no"])
    rows.sort(key=lambda row: -int(row[2] or 0))
    return Table(
        name="image_overlap",
        title="Images in two datasets",
        text="Images that are in both, by their ids. A build never puts one image on both sides of the split.",
        columns=("first", "second", "images", "across_the_split"),
        rows=rows[:_MOST_PAIRS],
    )


def _in_epoch(part: Part | None, field: str, draws: int) -> float:
    """The mean of a dataset's training samples times its draws."""
    return float(getattr(part, field).mean()) * draws if part is not None and len(part.lengths) else 0.0


def _copies(parts: Sequence[Part]) -> Table:
    """Samples whose tokens and images are equal, byte for byte: in one dataset, and in two."""
    distinct = [np.unique(part.contents) for part in parts]
    rows: list[list[Value]] = [
        [_named(part), _named(part), len(part.contents) - len(different)]
        for part, different in zip(parts, distinct, strict=True)
    ]
    for (first, one), (second, two) in combinations(zip(parts, distinct, strict=True), 2):
        rows.append([_named(first), _named(second), len(np.intersect1d(one, two, assume_unique=True))])
    rows = sorted((row for row in rows if row[2]), key=lambda row: -int(row[2] or 0))
    return Table(
        name="equal_samples",
        title="Equal samples",
        text="Samples with the tokens and images of another one: further copies in a dataset, and samples in two.",
        columns=("first", "second", "samples"),
        rows=rows[:_MOST_PAIRS],
    )


def _named(part: Part) -> str:
    return f"{part.dataset} ({part.split})"


def _contents_hashes(members: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """64-bit hashes over the checksums of each sample's members, without the first, its metadata."""
    hashes = []
    for chunk in members.chunks:
        ends, checksums = chunk.offsets.to_numpy(), memoryview(chunk.values.to_numpy()).cast("B")
        hashes += [
            xxhash.xxh3_64_intdigest(checksums[8 * start + 8 : 8 * end]) for start, end in pairwise(ends.tolist())
        ]
    return np.array(hashes, np.uint64)


def _share(values: Mapping[str, float], name: str) -> float:
    total = sum(values.values())
    return values.get(name, 0.0) / total if total else 0.0


def _hashes(groups: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """64-bit hashes of the ids of all images that samples show."""
    ids = (text.as_buffer() for chunk in groups.chunks for text in chunk.flatten() if text.is_valid)
    return np.fromiter((xxhash.xxh3_64_intdigest(text) for text in ids), np.uint64)
