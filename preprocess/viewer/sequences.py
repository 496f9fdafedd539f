"""Packed sequences as the trainer's loader makes them: which samples share one, and what each token may attend to."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dst import IGNORE
from preprocess.errors import ConfigError
from preprocess.viewer.attention import Span
from shards import Build, Sample, ShardError
from shards.format.records import check_branches
from shards.sampling.order import Order, StoredOrder
from shards.sampling.packed_sequences import PackedSequences
from shards.sampling.placeholders import expand

PAGE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedSettings:
    """As in train.yaml. max_length, max_images: of a sequence; max_length 0 means the build's limits.max_length."""

    split: str = "train"
    max_length: int = 0
    max_images: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedSample:
    """A sample in a sequence: tokens [start, end) of it. fault: why it cannot be read; its spans are then missing.

    records: its branches, or 1.
    """

    number: int
    key: str
    start: int
    end: int
    spans: tuple[Span, ...] = ()
    records: int = 1
    fault: str = ""

    @property
    def branch_starts(self) -> tuple[int, ...]:
        return tuple(after.start for before, after in pairwise(self.spans) if after.branch != before.branch)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceView:
    """cursor: where the sequence is in the endless order of sequences, as a loader's state names it."""

    cursor: int
    samples: tuple[PackedSample, ...]
    max_length: int

    @property
    def length(self) -> int:
        """Tokens without padding."""
        return self.samples[-1].end if self.samples else 0

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple(span for sample in self.samples for span in sample.spans)


class SequencePager:
    """The sequences of a split, from any cursor on. Raises ConfigError for settings that do not fit the build."""

    def __init__(self, build: Build, settings: PackedSettings) -> None:
        if settings.split not in build.splits:
            raise ConfigError([f"split: got {settings.split!r}; expected {' or '.join(build.splits)}"])
        self._build, self._settings = build, settings
        self.max_length = settings.max_length or build.manifest.config.limits.max_length
        self._order = _order(build, settings)
        self._samples = len(build[settings.split])
        self._first = sum(len(build[split]) for split in build.splits[: build.splits.index(settings.split)])
        self._sequences = PackedSequences(
            build[settings.split],
            self._order,
            key=(build.manifest.hash, settings.seed),
            image_tokens=build.manifest.config.image_tokens,
            max_length=self.max_length,
            max_images=settings.max_images,
        )
        self.epoch_length = len(self._order)

    def page(self, cursor: int, count: int = PAGE) -> tuple[list[SequenceView], int | None]:
        """The next sequences of the first epoch from a cursor on, and the cursor after them; None at its end.

        Raises ShardError for a sample that no sequence of this length takes.
        """
        views: list[SequenceView] = []
        while len(views) < count and cursor < self.epoch_length:
            taken, following = self._sequences.take(cursor, 1, epochs=1)
            if taken:
                views.append(self._view(cursor, taken[0]))
            cursor = following
        return views, cursor if cursor < self.epoch_length else None

    def cursor_of(self, number: int) -> int | None:
        """The cursor of the first sequence of the epoch that has a sample (its number in the build), or None."""
        wanted = number - self._first
        draw = self._order.draw_of(0, wanted) if wanted in range(self._samples) else None
        if draw is None:
            return None
        start = draw // self._sequences.size * self._sequences.size
        window = self._sequences.window(0, start)
        return start + next(place for place, sequence in enumerate(window) if wanted in sequence)

    def _view(self, cursor: int, numbers: tuple[int, ...]) -> SequenceView:
        samples, start = [], 0
        for place, number in enumerate(numbers):
            samples.append(self._packed_sample(number, place, start))
            start = samples[-1].end
        return SequenceView(cursor=cursor, samples=tuple(samples), max_length=self.max_length)

    def _packed_sample(self, index: int, place: int, start: int) -> PackedSample:
        build, number = self._build, index + self._first
        try:
            sample = build[self._settings.split][index]
            check_branches(sample, build.manifest.tokenizer.image_id)
        except ShardError as error:
            length = int(
                build[self._settings.split].lengths(np.array([index]), build.manifest.config.image_tokens)[0][0]
            )
            return PackedSample(number=number, key="", start=start, end=start + length, fault=str(error))
        spans = spans_of(
            sample,
            image_id=build.manifest.tokenizer.image_id,
            image_tokens=build.manifest.config.image_tokens,
            place=place,
            start=start,
        )
        return PackedSample(
            number=number,
            key=sample.key,
            start=start,
            end=spans[-1].end,
            spans=spans,
            records=len(sample.branches),
        )


def spans_of(sample: Sample, *, image_id: int, image_tokens: int, place: int = 0, start: int = 0) -> tuple[Span, ...]:
    """The spans of a sample that begins at token `start` of its sequence."""
    expansion = expand(sample.ids, image_id=image_id, image_tokens=image_tokens, grids=sample.grids)
    pairs = zip(expansion.image_starts, sample.grids, strict=True)
    spans = [
        Span(start=start + first, end=start + first + grid.tiles * image_tokens, sample=place, image=image)
        for image, (first, grid) in enumerate(pairs)
    ]
    trained = sample.labels != IGNORE
    branch = np.zeros(len(trained), np.int32) if sample.branch_ids is None else sample.branch_ids
    changes = np.append(False, (trained[1:] != trained[:-1]) | (branch[1:] != branch[:-1]))
    for source, target in expansion.text:
        borders = [source.start, *(np.flatnonzero(changes[source][1:]) + source.start + 1).tolist(), source.stop]
        offset = start + target.start - source.start
        spans += [
            Span(
                start=offset + first,
                end=offset + last,
                sample=place,
                trained=bool(trained[first]),
                branch=int(branch[first]),
            )
            for first, last in pairwise(borders)
        ]
    return tuple(sorted(spans, key=lambda span: span.start))


def _order(build: Build, settings: PackedSettings) -> Order | StoredOrder:
    """As the loader chooses it for a build in a folder: mixed for training, as stored for evaluation."""
    if settings.split != "train":
        return StoredOrder(len(build[settings.split]))
    return build.order("train", seed=settings.seed)
