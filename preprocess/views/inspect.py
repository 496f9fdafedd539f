"""Look at the samples of a build in a terminal; preprocess.views.sample_text makes the text from ids and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

import shards
from dst import IGNORE, load_tokenizer
from preprocess.errors import DataError
from preprocess.terminal import cell, results
from preprocess.views.sample_text import frame_text, text_runs
from shards import Sample

TRAINED = "bold green"
IMAGE = "bold cyan"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """A sample with its text, in runs of (text, trained). placeholders: the runs that are images."""

    sample: Sample
    dataset: str
    split: str
    runs: tuple[tuple[str, bool], ...]
    placeholders: frozenset[int]

    def to_json(self) -> dict[str, Any]:
        metadata = self.sample.metadata
        return {
            "key": self.sample.key,
            "id": metadata["id"],
            "dataset": self.dataset,
            "source": metadata["sources"][0],
            "sources": metadata["sources"],
            "split": self.split,
            "text": "".join(text for text, _ in self.runs),
            "ids": self.sample.ids.tolist(),
            "labels": self.sample.labels.tolist(),
            "images": [
                {**image, "sha256": hashlib.sha256(data).hexdigest()}
                for image, data in zip(metadata["images"], self.sample.images, strict=True)
            ],
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
            sample = shard[row]
            runs, placeholders = text_runs(sample, tokenizer)
            yield Inspected(sample=sample, dataset=name, split=side, runs=runs, placeholders=placeholders)
            shown += 1
    if not shown:
        raise DataError(
            f"{build}: no sample"
            + (f" with key {key}" if key else "")
            + (f" in {dataset}" if dataset else "")
            + (f" on the {split} side" if split else "")
        )


def print_sample(inspected: Inspected) -> None:
    """Trained text is green, image placeholders are cyan; every image is listed with its name and size."""
    console = results()
    sample, metadata = inspected.sample, inspected.sample.metadata
    sources = ", ".join(f"{source['file']} {source['record']}" for source in metadata["sources"])
    console.print(cell(f"{sample.key}  {inspected.split}  from {sources}", style="bold"))
    for number, (image, data) in enumerate(zip(metadata["images"], sample.images, strict=True), start=1):
        size = f"{image['width']} x {image['height']}"
        name = " ".join(filter(None, (image["name"], frame_text(image))))
        console.print(cell(f"  image {number}: {name}  {size}  {len(data):,} bytes"))
    trained = int(np.count_nonzero(sample.labels != IGNORE))
    console.print(cell(f"  {len(sample.ids)} ids, {trained} trained"))
    if metadata.get("notes"):
        console.print(cell(f"  notes: {', '.join(metadata['notes'])}"))
    console.print(coloured(inspected))
    console.print()


def coloured(inspected: Inspected) -> Text:
    """The sample's text as the terminal shows it."""
    text = Text()
    for number, (piece, trained) in enumerate(inspected.runs):
        style = IMAGE if number in inspected.placeholders else TRAINED if trained else ""
        text.append_text(cell(piece, style=style))
    return text
