"""The differences of two builds for a terminal: tables, then samples with the marks of `git diff --word-diff`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from preprocess.compiler.report import counts_text
from preprocess.terminal import cell, results
from preprocess.views.diff import BuildDifferences, DatasetDifferences
from preprocess.views.diff_manifest import Count, Difference
from preprocess.views.diff_samples import ASPECTS, ImageDifference, SampleDifference, SamplePlace
from preprocess.views.diff_words import Piece, shorten

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_LINES = 60  # of a template's diff
_CHARACTERS = 160  # of a value
_KEEP = 80  # characters of unchanged text next to a change
_PIECE = 2_000  # characters of a change
_OPEN = {"-": ("[-", "-]", "red"), "+": ("{+", "+}", "green")}


def print_differences(differences: BuildDifferences) -> None:
    """Everything that differs; of long texts and values the beginning, which --html and --json show in full."""
    console = results()
    for side, location, digest in zip("AB", differences.locations, differences.hashes, strict=True):
        console.print(cell(f"{side}: {location} ({digest[:12]})"))
    if not differences:
        console.print("no differences")
        return
    manifest = differences.manifest
    named = [*manifest.settings, *manifest.versions, *manifest.tokenizer, *manifest.inputs]
    if named:
        console.print(_values_table(named))
    tokens = manifest.added_tokens
    for side, only in (("A", tokens.only_old), ("B", tokens.only_new)):
        if only:
            console.print(cell(f"added tokens of {side} alone: {' '.join(only)}"[:_PIECE]))
    for template in manifest.templates:
        console.print(cell(f"template of {', '.join(template.datasets)}:"))
        for line in template.lines[:_LINES]:
            console.print(cell(line, style={"-": "red", "+": "green"}.get(line[:1], "")))
        if len(template.lines) > _LINES:
            console.print(f"... {len(template.lines) - _LINES:,} more lines: --html shows all")
    if manifest.counts:
        console.print(_counts_table(manifest.counts))
    console.print(_samples_table(differences.datasets))
    for dataset in differences.datasets:
        for line in dataset_lines(dataset):
            console.print(cell(line))
    for sample in differences.samples:
        console.print()
        _print_sample(sample)
    if differences.num_different > len(differences.samples):
        shown, units = len(differences.samples), units_of(differences)
        console.print(f"{shown:,} of {differences.num_different:,} {units} are shown: --limit")


def dataset_lines(dataset: DatasetDifferences) -> Iterator[str]:
    """What the table of samples does not say: renamed or in one build only, how samples changed, what was not read."""
    if dataset.old_name is None or dataset.new_name is None:
        yield f"{dataset.name}: only in {'B' if dataset.old_name is None else 'A'}"
    elif dataset.old_name != dataset.new_name:
        yield f"{dataset.name}: was {dataset.old_name}: the same adapter and annotation files"
    if dataset.aspects:
        yield f"{dataset.name}: changed: {counts_text(dataset.aspects)}"
    if dataset.to_eval or dataset.to_train:
        yield f"{dataset.name}: moved: {dataset.to_eval:,} to eval, {dataset.to_train:,} to train"
    if dataset.regrouped:
        yield f"{dataset.name}: regrouped: {dataset.regrouped:,} records share a sample with other records than before"
    if unread := dataset.aspects.get("tokens"):
        yield f"{dataset.name}: {unread:,} {dataset.unit} have {ASPECTS['tokens']}; --read sets how many are read"


def units_of(differences: BuildDifferences) -> str:
    """What is compared: samples, records, or both in different datasets."""
    return " and ".join(sorted({dataset.unit for dataset in differences.datasets}, reverse=True))


def change_of(count: Count) -> str:
    """The difference of a count, signed; empty where a build does not have the dataset."""
    if count.old is None or count.new is None:
        return ""
    return f"{count.new - count.old:+.2%}" if count.name == "share" else f"{count.new - count.old:+,}"


def number_of(count: Count, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if count.name == "share" else f"{value:,}"


def _values_table(values: Sequence[Difference]) -> Table:
    from rich.table import Table

    table = Table("", "A", "B")
    for value in values:
        table.add_row(cell(value.name), cell(_value(value.old)), cell(_value(value.new)))
    return table


def _value(text: str | None) -> str:
    if text is None:
        return "-"
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}... ({len(text) - _CHARACTERS:,} more)"


def _counts_table(counts: Sequence[Count]) -> Table:
    from rich.table import Table

    table = Table("dataset", "count")
    for title in ("A", "B", "change"):
        table.add_column(title, justify="right", no_wrap=True)
    for count in counts:
        numbers = number_of(count, count.old), number_of(count, count.new), change_of(count)
        table.add_row(cell(count.dataset), cell(count.name), *numbers)
    return table


def _samples_table(datasets: Sequence[DatasetDifferences]) -> Table:
    from rich.table import Table

    table = Table("dataset", "compared")
    for title in ("equal", "changed", "added", "removed"):
        table.add_column(title, justify="right", no_wrap=True)
    for dataset in datasets:
        table.add_row(
            cell(dataset.name),
            dataset.unit,
            *(f"{n:,}" for n in (dataset.equal, dataset.changed, dataset.added, dataset.removed)),
        )
    return table


def _print_sample(sample: SampleDifference) -> None:
    console = results()
    places = " -> ".join(place_of(place) for place in (sample.old, sample.new) if place)
    console.print(cell(f"{sample.dataset}: {sample.id}: {', '.join(sample.what)} ({places})", style="bold"))
    if sample.fault:
        console.print(cell(f"  {sample.fault}", style="red"))
    for image in sample.images:
        console.print(cell(f"  image {image_line(image)}"))
    for value in sample.metadata:
        console.print(cell(f"  {value.name}: {_value(value.old)} -> {_value(value.new)}"))
    if sample.text:
        console.print(marked(sample.text))
    if sample.labels:
        console.print("  trained now, and no longer trained:")
        console.print(marked(sample.labels))


def image_line(image: ImageDifference) -> str:
    """Which image differs and how, by the numbers that people count from 1."""
    sides = [f"{side.number + 1} ({side.name})" if side else None for side in (image.old, image.new)]
    if sides[0] is None:
        return f"{sides[1]} was added"
    return f"{sides[0]} was removed" if sides[1] is None else f"{sides[0]} became {sides[1]}: other bytes"


def place_of(place: SamplePlace) -> str:
    """The side of the split, and the key of the sample; of a record also its branch, counted from 1."""
    branch = "" if place.branch is None else f" branch {place.branch + 1}"
    return f"{place.split} {place.key or place.index}{branch}"


def marked(pieces: Sequence[Piece]) -> Text:
    """Text with its changes in the marks of `git diff --word-diff` and in colour; unchanged text is shortened."""
    text = cell("")
    for mark, piece in shorten(pieces, _KEEP):
        start, end, style = _OPEN.get(mark, ("", "", ""))
        cut = piece if len(piece) <= _PIECE else f"{piece[:_PIECE]} … {len(piece) - _PIECE:,} characters …"
        text.append_text(cell(f"{start}{cut}{end}", style=style))
    return text
