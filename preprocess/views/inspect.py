"""Look at the samples of a build in a terminal; preprocess.views.sample_text makes the text from ids and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.text import Text

import shards
from dst import IGNORE, TextTokenizer, load_tokenizer
from preprocess.errors import DataError
from preprocess.terminal import cell, results
from preprocess.views.sample_text import Piece, frame_text, record_texts, runs_of, tiles_text, whole_text
from shards import Sample
from shards.format.records import SampleRecord

TRAINED = "bold green"
IMAGE = "bold cyan"


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedBranch:
    """A record of a sample with branches. text: all of the record's, as the model sees it. pieces: its own ones."""

    record: SampleRecord
    text: str
    pieces: tuple[Piece, ...]

    def to_json(self, labels: npt.NDArray[np.int32]) -> dict[str, Any]:
        """labels: int32 [T], of the sample."""
        branch = self.record.branch
        trained = np.diff((labels[branch.start : branch.end] != IGNORE).astype(np.int8), prepend=0, append=0)
        borders = (np.flatnonzero(trained) + branch.start).reshape(-1, 2)
        return {
            "id": self.record.id,
            "sources": [{"file": file, "record": record} for file, record in self.record.sources],
            "references": list(self.record.references),
            "beginning": branch.beginning,
            "start": branch.start,
            "end": branch.end,
            "trained": borders.tolist(),
            "text": self.text,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """A sample with its pieces; with branches, those of its beginning, and the branches."""

    sample: Sample
    dataset: str
    split: str
    pieces: tuple[Piece, ...]
    branches: tuple[InspectedBranch, ...] = ()

    def to_json(self) -> dict[str, Any]:
        metadata, own = self.sample.metadata, [branch.pieces for branch in self.branches]
        return {
            "key": self.sample.key,
            "id": metadata["id"],
            "dataset": self.dataset,
            "source": metadata["sources"][0],
            "sources": metadata["sources"],
            "split": self.split,
            "text": "".join(piece.text for pieces in (self.pieces, *own) for piece in pieces),
            "ids": self.sample.ids.tolist(),
            "labels": self.sample.labels.tolist(),
            "images": [
                {**image, "sha256": hashlib.sha256(data).hexdigest()}
                for image, data in zip(metadata["images"], self.sample.images, strict=True)
            ],
            **({"branches": [one.to_json(self.sample.labels) for one in self.branches]} if self.branches else {}),
        }


def inspect_samples(
    build: str | Path,
    *,
    dataset: str | None = None,
    split: str | None = None,
    key: str | None = None,
    limit: int | None = None,
) -> Iterator[Inspected]:
    """Samples of a build, in its order. Raises DataError if no sample matches, ShardError if one is damaged."""
    opened = shards.open(build)
    tokenizer = load_tokenizer(opened.tokenizer_folder())
    shown = 0
    for name, side, shard in opened.shards(dataset=dataset, split=split):
        rows = (
            range(len(shard)) if key is None else [row for row, found in enumerate(shard.sample_keys()) if found == key]
        )
        for row in rows:
            if shown == limit:
                return
            yield _inspected(shard[row], tokenizer, name, side)
            shown += 1
    if not shown:
        raise DataError(
            f"{build}: no sample"
            + (f" with key {key}" if key else "")
            + (f" in {dataset}" if dataset else "")
            + (f" on the {split} side" if split else "")
        )


def print_sample(inspected: Inspected) -> None:
    """Trained text is green, image placeholders are cyan; every image is listed with its name and size.

    Branches are below the beginning that they have in common, each with its record.
    """
    console = results()
    sample, metadata, branches = inspected.sample, inspected.sample.metadata, inspected.branches
    sources = ", ".join(f"{source['file']} {source['record']}" for source in metadata["sources"])
    origin = f"{len(branches)} records as branches" if branches else f"from {sources}"
    console.print(cell(f"{sample.key}  {inspected.split}  {origin}", style="bold"))
    shown = zip(metadata["images"], sample.images, sample.grids, strict=True)
    for number, (image, data, grid) in enumerate(shown, start=1):
        size = f"{image['width']} x {image['height']}" + ("  " + tiles_text(grid) if grid.tiles > 1 else "")
        name = " ".join(filter(None, (image["name"], frame_text(image))))
        console.print(cell(f"  image {number}: {name}  {size}  {len(data):,} bytes"))
    console.print(cell(f"  {len(sample.ids)} ids, {_trained(sample.labels)} trained"))
    if metadata.get("notes"):
        console.print(cell(f"  notes: {', '.join(metadata['notes'])}"))
    console.print(coloured(inspected.pieces))
    for number, one in enumerate(branches, start=1):
        record, branch = one.record, one.record.branch
        sources = ", ".join(f"{file} {name}" for file, name in record.sources)
        console.print(cell(f"branch {number}: {record.id}  from {sources}", style="bold"))
        trained = _trained(sample.labels[branch.start : branch.end])
        console.print(cell(f"  {branch.end - branch.start} ids of its own, {trained} trained"))
        if record.references:
            console.print(cell(f"  references: {', '.join(record.references)}"))
        console.print(coloured(one.pieces))
    console.print()


def coloured(pieces: Sequence[Piece]) -> Text:
    """The text of pieces as the terminal shows it."""
    text = Text()
    runs, placeholders = runs_of(pieces)
    for number, (run, trained) in enumerate(runs):
        text.append_text(cell(run, style=IMAGE if number in placeholders else TRAINED if trained else ""))
    return text


def _inspected(sample: Sample, tokenizer: TextTokenizer, dataset: str, split: str) -> Inspected:
    texts = record_texts(sample, tokenizer)
    if sample.branch_ids is None:
        return Inspected(sample=sample, dataset=dataset, split=split, pieces=texts[0].pieces)
    branches = tuple(
        InspectedBranch(record=each.record, text=whole_text(each.sample, tokenizer), pieces=each.branch)
        for each in texts
    )
    return Inspected(sample=sample, dataset=dataset, split=split, pieces=texts[0].beginning, branches=branches)


def _trained(labels: npt.NDArray[np.int32]) -> int:
    return int(np.count_nonzero(labels != IGNORE))
