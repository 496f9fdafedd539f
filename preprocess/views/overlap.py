"""`dsvl-prep overlap`: the images that two builds, folders or archives share."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dst.common.progress import Progress, Silent
from preprocess.compiler.engines import Engine, process_engine
from preprocess.compiler.fingerprints import FingerprintStage
from preprocess.compiler.reference_images import reference_images
from preprocess.compiler.task_runner import TaskRunner
from preprocess.dedupe.fingerprint import Level
from preprocess.dedupe.match import KINDS, match_images
from preprocess.errors import ConfigError

_MAX_PIXELS = 100_000_000
_SHOWN_PAIRS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """pairs: (image of the first, image of the second, how they match: bytes, pixels or near), by the first's names."""

    images: tuple[int, int]
    pairs: tuple[tuple[str, str, str], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "images": list(self.images),
            "counts": self.counts(),
            "pairs": [{"first": first, "second": second, "match": kind} for first, second, kind in self.pairs],
        }

    def counts(self) -> dict[str, int]:
        """How many images of the first match one of the second, by the strictest way in which they do."""
        kinds = [kind for _, _, kind in self.pairs]
        return {kind: kinds.count(kind) for kind in KINDS}


def find_overlap(
    first: Path,
    second: Path,
    *,
    match: Literal["bytes", "near"] = "near",
    distance: int = 31,
    workers: int = 1,
    progress: Progress | None = None,
    engine: Engine = process_engine,
) -> Overlap:
    """For each image of `first`, the image of `second` that it copies. Nothing is written next to them.

    distance: of perceptual hashes, in bits of 256. Raises ConfigError for a path that does not exist, DataError for one
    without images.
    """
    if problems := [f"{path}: no such folder, archive or build" for path in (first, second) if not path.exists()]:
        raise ConfigError(problems)
    level: Level = "look" if match == "near" else "bytes"
    with tempfile.TemporaryDirectory(prefix="dsvl-overlap-") as scratch:
        stage = FingerprintStage(
            spools={},
            stores={},
            cache=Path(scratch),
            max_pixels=_MAX_PIXELS,
            run=TaskRunner(engine, workers, progress or Silent()),
            used=set(),
            looks=[],
        )
        left, right = (reference_images(path, stage, level) for path in (first, second))
    limit = distance if match == "near" else None
    rows, kinds = match_images(left.fingerprints, right.fingerprints, limit, threads=workers)
    pairs = [
        (left.names[index], right.names[row], KINDS[kind])
        for index, (row, kind) in enumerate(zip(rows.tolist(), kinds.tolist(), strict=True))
        if row >= 0
    ]
    return Overlap(images=(len(left.names), len(right.names)), pairs=tuple(sorted(pairs)))


def print_overlap(overlap: Overlap) -> None:
    """Counts, then the first pairs."""
    from rich.table import Table

    from preprocess.terminal import cell, results

    console = results()
    first, second = overlap.images
    console.print(f"{first:,} and {second:,} images; {len(overlap.pairs):,} of the first are in the second")
    if not overlap.pairs:
        return
    console.print("by " + ", ".join(f"{kind} {count:,}" for kind, count in overlap.counts().items()))
    table = Table()
    for title in ("first", "second", "match"):
        table.add_column(title, overflow="fold")
    for pair in overlap.pairs[:_SHOWN_PAIRS]:
        table.add_row(*(cell(text) for text in pair))
    console.print(table)
    if len(overlap.pairs) > _SHOWN_PAIRS:
        console.print(f"{len(overlap.pairs) - _SHOWN_PAIRS:,} more pairs: --json lists all")
