"""`dsvl-prep overlap`: the images and questions that two builds, folders, archives or files share."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dst.common.progress import Progress, Silent
from preprocess.compiler.engines import Engine, keeping_workers, process_engine
from preprocess.compiler.fingerprints import FingerprintStage
from preprocess.compiler.reference_images import EXTENSIONS, NO_IMAGES, has_images, reference_images
from preprocess.compiler.task_runner import TaskRunner
from preprocess.dedupe.fingerprint import Level
from preprocess.dedupe.match import KINDS, match_images
from preprocess.dedupe.texts import QuestionIndex, too_short
from preprocess.errors import ConfigError, DataError
from preprocess.terminal import cell, results
from preprocess.views.question_sources import Questions, find_questions

_MAX_PIXELS = 100_000_000
_SHOWN_PAIRS = 20
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionOverlap:
    """Questions of the first that share `ngram` words in a row with one of the second.

    questions: how many there are. too_short: how many of them have fewer words, and match nothing. without: records
    without a question. pairs: (question of the first, question of the second, the first's text). unread: files of
    either, with the reason.
    """

    ngram: int
    questions: tuple[int, int]
    too_short: tuple[int, int]
    without: tuple[int, int]
    pairs: tuple[tuple[str, str, str], ...]
    unread: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "ngram": self.ngram,
            "count": list(self.questions),
            "too_short": list(self.too_short),
            "records_without": list(self.without),
            "pairs": [{"first": first, "second": second, "text": text} for first, second, text in self.pairs],
            "unread": list(self.unread),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """pairs: (image of the first, image of the second, how they match: bytes, pixels or near), by the first's names."""

    images: tuple[int, int]
    pairs: tuple[tuple[str, str, str], ...]
    questions: QuestionOverlap

    def to_json(self) -> dict[str, Any]:
        return {
            "images": list(self.images),
            "counts": self.counts(),
            "pairs": [{"first": first, "second": second, "match": kind} for first, second, kind in self.pairs],
            "questions": self.questions.to_json(),
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
    question_key: str = "question",
    ngram: int = 13,
    workers: int = 1,
    progress: Progress | None = None,
    engine: Engine = process_engine,
) -> Overlap:
    """For each image and question of `first`, one of `second` that it copies. Nothing is written next to them.

    distance: of perceptual hashes, in bits of 256. question_key: of questions in records. ngram: words in a row. Raises
    ConfigError for a path that does not exist, DataError if there is nothing to compare.
    """
    if problems := [f"{path}: no such folder, file or build" for path in (first, second) if not path.exists()]:
        raise ConfigError(problems)
    questions = _questions(find_questions(first, question_key), find_questions(second, question_key), ngram)
    level: Level = "look" if match == "near" else "bytes"
    with tempfile.TemporaryDirectory(prefix="dsvl-overlap-") as scratch, keeping_workers(engine) as kept:
        stage = FingerprintStage(
            spools={},
            stores={},
            states={},
            cache=Path(scratch),
            max_pixels=_MAX_PIXELS,
            run=TaskRunner(kept, workers, progress or Silent()),
            used=set(),
            looks=[],
        )
        with_images = [path for path in (first, second) if has_images(path, stage)]
        if len(with_images) < 2 and not all(questions.questions):
            raise DataError(_nothing_to_compare(first, second, with_images, questions))
        left, right = (
            reference_images(path, stage, level) if len(with_images) == 2 else NO_IMAGES for path in (first, second)
        )
    limit = distance if match == "near" else None
    rows, kinds = match_images(left.fingerprints, right.fingerprints, limit, threads=workers)
    pairs = [
        (left.names[index], right.names[row], KINDS[kind])
        for index, (row, kind) in enumerate(zip(rows.tolist(), kinds.tolist(), strict=True))
        if row >= 0
    ]
    return Overlap(images=(len(left.names), len(right.names)), pairs=tuple(sorted(pairs)), questions=questions)


def _questions(first: Questions, second: Questions, ngram: int) -> QuestionOverlap:
    index = QuestionIndex.of((text, ngram) for text in second.texts)
    matches = [index.match([text]) for text in first.texts]
    return QuestionOverlap(
        ngram=ngram,
        questions=(len(first.texts), len(second.texts)),
        too_short=(too_short(first.texts, ngram), too_short(second.texts, ngram)),
        without=(first.without, second.without),
        pairs=tuple(
            (name, second.names[match], text)
            for name, text, match in zip(first.names, first.texts, matches, strict=True)
            if match >= 0
        ),
        unread=(*first.unread, *second.unread),
    )


def _nothing_to_compare(first: Path, second: Path, with_images: Sequence[Path], questions: QuestionOverlap) -> str:
    lines = [
        f"{path}: has {'images' if path in with_images else 'no images'} and {count or 'no'} questions"
        for path, count in zip((first, second), questions.questions, strict=True)
    ]
    expected = f"expected images or questions in both; images are files named {', '.join(EXTENSIONS)}"
    return "\n".join([*lines, expected, *questions.unread])


def print_overlap(overlap: Overlap) -> None:
    """Counts, then the first pairs, of what both have."""
    console = results()
    if all(overlap.images):
        first, second = overlap.images
        console.print(f"{first:,} and {second:,} images; {len(overlap.pairs):,} of the first are in the second")
        if overlap.pairs:
            console.print("by " + ", ".join(f"{kind} {count:,}" for kind, count in overlap.counts().items()))
        _print_pairs(("first", "second", "match"), overlap.pairs)
    asked = overlap.questions
    if all(asked.questions):
        first, second = asked.questions
        console.print(
            f"{first:,} and {second:,} questions; {len(asked.pairs):,} of the first share {asked.ngram} words in a row "
            "with one of the second"
        )
        short = f"{asked.too_short[0]:,} and {asked.too_short[1]:,} have fewer words and match nothing"
        console.print(f"{short}; --ngram sets the number of words")
        _print_pairs(("first", "second", "question"), asked.pairs)
    if any(asked.without):
        console.print(f"records without a question: {asked.without[0]:,} and {asked.without[1]:,}")
    for line in asked.unread:
        console.print(cell(f"no questions read: {line}"))


def _print_pairs(titles: Sequence[str], pairs: Sequence[Sequence[str]]) -> None:
    if not pairs:
        return
    from rich.table import Table

    table = Table()
    for title in titles:
        table.add_column(title, overflow="fold")
    for pair in pairs[:_SHOWN_PAIRS]:
        table.add_row(*(cell(text[:_SHOWN_CHARACTERS]) for text in pair))
    results().print(table)
    if len(pairs) > _SHOWN_PAIRS:
        results().print(f"{len(pairs) - _SHOWN_PAIRS:,} more pairs: --json lists all")
