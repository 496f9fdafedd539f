"""What samples say: turns, answers, image sizes, and the texts that come back most often.

Rule: at most as many samples are read as asked for, drawn evenly from every dataset and split; each table of these
numbers says so. The same build and number give the same samples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from preprocess.reports.frequent_texts import LONGEST, FrequentTexts
from preprocess.reports.histograms import histogram_table
from preprocess.reports.tables import Table, Value
from preprocess.viewer.opened_build import OpenedBuild
from preprocess.viewer.turns import ChatTurn, Opener, turns_of
from preprocess.views.sample_text import pieces_of
from shards import Sample, ShardError
from shards.format.records import each_alone

_TOP = 25
_MOST_DAMAGED = 10
_OPENING_WORDS = 5
_ASPECTS = (0.0, 0.2, 1 / 3, 0.5, 2 / 3, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0)


@dataclass(slots=True)
class Sharing:
    """Samples with branches that were read. separate_*: what their records would have as samples of their own."""

    samples: int = 0
    records: int = 0
    text_tokens: int = 0
    separate_text_tokens: int = 0
    tokens: int = 0
    separate_tokens: int = 0


@dataclass(slots=True)
class SampleNumbers:
    """Collected from the samples that were read. damaged: the first samples that could not be.

    sharing: dataset -> sums over its samples with branches.
    """

    read: int = 0
    sharing: dict[str, Sharing] = field(default_factory=dict)
    turns: list[int] = field(default_factory=list)
    answer_tokens: list[int] = field(default_factory=list)
    answer_characters: list[int] = field(default_factory=list)
    sides: list[int] = field(default_factory=list)
    aspects: list[float] = field(default_factory=list)
    questions: FrequentTexts = field(default_factory=FrequentTexts)
    answers: FrequentTexts = field(default_factory=FrequentTexts)
    openings: FrequentTexts = field(default_factory=FrequentTexts)
    damaged: list[str] = field(default_factory=list)


def read_samples(opened: OpenedBuild, most: int) -> SampleNumbers:
    """Read at most about `most` samples. A damaged sample is left out, and named."""
    numbers = SampleNumbers()
    for dataset, number in _drawn(opened, most):
        try:
            sample = number[0][number[1]]
            records = each_alone(sample, opened.build.manifest.tokenizer.image_id)
        except ShardError as error:
            numbers.damaged += [str(error)] if len(numbers.damaged) < _MOST_DAMAGED else []
            continue
        _collect(numbers, opened, sample, records, dataset)
    return numbers


def sample_tables(numbers: SampleNumbers) -> Iterator[Table]:
    """Tables of the samples that were read."""
    histograms: Sequence[tuple[str, str, str, Sequence[float], str, Sequence[float] | None]] = (
        ("turns", "Turns", "records" if numbers.sharing else "samples", numbers.turns, "turns", None),
        ("answer_tokens", "Length of an answer", "answers", numbers.answer_tokens, "tokens of an answer", None),
        (
            "answer_characters",
            "Length of an answer in characters",
            "answers",
            numbers.answer_characters,
            "characters of an answer",
            None,
        ),
        ("image_sizes", "Size of images", "images", numbers.sides, "pixels of the longer side", None),
        ("aspect_ratios", "Shape of images", "images", numbers.aspects, "width / height", _ASPECTS),
    )
    for name, title, what, values, unit, edges in histograms:
        if values:
            text = (
                f"How many {what} have this many {unit}."
                if edges is None
                else f"How many {what} have this {unit}. The last bar also has what is beyond it."
            )
            yield histogram_table(
                name, title, text, {what: np.asarray(values)}, unit=unit, edges=edges, is_of_read=True
            )
    yield from _sharing(numbers)
    texts = (
        ("questions", "Most frequent questions", numbers.questions),
        ("answers", "Most frequent answers", numbers.answers),
        ("openings", f"Most frequent first {_OPENING_WORDS} words of answers", numbers.openings),
    )
    for name, title, counted in texts:
        yield _frequent(name, title, counted)


def _sharing(numbers: SampleNumbers) -> Iterator[Table]:
    if not numbers.sharing:
        return
    columns = ("samples", "records", "text_tokens", "separate_text_tokens", "tokens", "separate_tokens")
    rows: list[list[Value]] = [
        [dataset, *(getattr(sharing, column) for column in columns), 1 - sharing.tokens / sharing.separate_tokens]
        for dataset, sharing in numbers.sharing.items()
    ]
    yield Table(
        name="sharing",
        title="What sharing saves",
        text="Of samples with branches: the tokens that they have, and that a sample for each record would have; text "
        "alone, and with images.",
        columns=("dataset", *columns, "saved"),
        rows=rows,
        is_of_read=True,
    )


def _frequent(name: str, title: str, counted: FrequentTexts) -> Table:
    rows: list[list[Value]] = [[text, count, count / counted.total] for text, count in counted.top(_TOP) if count > 1]
    same = f" Texts are the same if their first {LONGEST} characters are."
    missing = f" Counts may be up to {counted.most_missing:,} too low." if counted.most_missing else ""
    return Table(
        name=name,
        title=title,
        text=f"Of {counted.total:,}; texts that occur once are left out.{same}{missing}",
        columns=("text", "count", "share"),
        rows=rows,
        is_of_read=True,
    )


def _drawn(opened: OpenedBuild, most: int) -> Iterator[tuple[str, tuple[Any, int]]]:
    """(dataset, (split, index)) evenly over each dataset's part of each split, at least one of each part."""
    if most == 0:
        return
    total = max(opened.num_samples, 1)
    for split in opened.build.splits:
        samples = opened.build[split]
        start = 0
        for dataset, size in samples.sizes.items():
            count = size if total <= most else min(size, max(1, size * most // total))
            for index in (
                np.unique(np.linspace(start, start + size - 1, count).astype(np.int64)).tolist() if size else ()
            ):
                yield dataset, (samples, index)
            start += size


def _collect(
    numbers: SampleNumbers, opened: OpenedBuild, sample: Sample, records: Sequence[Sample], dataset: str
) -> None:
    numbers.read += 1
    for record in records:
        _collect_texts(numbers, opened, record, dataset)
    if sample.branch_ids is not None:
        of_images = sample.tiles * opened.build.manifest.config.image_tokens
        sharing = numbers.sharing.setdefault(dataset, Sharing())
        sharing.samples += 1
        sharing.records += len(records)
        text, separate = (sum(len(one.ids) - len(one.images) for one in several) for several in ([sample], records))
        sharing.text_tokens += text
        sharing.tokens += text + of_images
        sharing.separate_text_tokens += separate
        sharing.separate_tokens += separate + len(records) * of_images
    for image in sample.metadata.get("images") or ():
        width, height = (image.get(f"original_{side}", image.get(side, 0)) for side in ("width", "height"))
        numbers.sides.append(max(width, height))
        numbers.aspects.append(width / max(height, 1))


def _collect_texts(numbers: SampleNumbers, opened: OpenedBuild, record: Sample, dataset: str) -> None:
    """Turns, questions and answers of a record alone."""
    openers = opened.openers(dataset)
    turns = turns_of(pieces_of(record, opened.tokenizer), openers)
    numbers.turns.append(sum(turn.role != "context" for turn in turns))
    for turn in turns:
        if turn.trained:
            trained = [piece for piece in turn.pieces if piece.trained]
            numbers.answer_tokens.append(sum(piece.end - piece.start for piece in trained))
            answer = " ".join("".join(piece.text for piece in trained if piece.kind == "text").split())
            numbers.answer_characters.append(len(answer))
            numbers.answers.add(answer)
            numbers.openings.add(" ".join(answer.split()[:_OPENING_WORDS]))
        elif turn.role == "user":
            numbers.questions.add(question_of(turn, openers))


def question_of(turn: ChatTurn, openers: Sequence[Opener]) -> str:
    """The words of a user's turn, without those of the template."""
    text = "".join(piece.text for piece in turn.pieces if piece.kind == "text")
    for opener in openers:
        text = re.sub(opener.pattern, " ", text)
    return " ".join(text.split())
