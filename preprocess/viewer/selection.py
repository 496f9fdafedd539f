"""Which samples a gallery shows, and in which order, without loading a build.

A sample's number counts the train side and after it the eval side, each as shards.Build orders it. A page is found by
a scan from a place in the order, forward or backward, that ends when the page is full or its time is used up; then the
page says how far the scan came. So a page costs the same at any size of the build.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from dst import TextTokenizer
from dst.common.suggest import nearest
from preprocess.errors import ConfigError
from preprocess.viewer.record_counts import RecordCounts
from preprocess.views.sample_text import whole_text
from shards import Build, Sample, ShardError
from shards.format.records import check_branches, each_alone
from shards.sampling.permutation import Permutation, make_key

Order = Literal["build", "random", "longest", "shortest", "most-images"]
ORDERS: tuple[Order, ...] = ("build", "random", "longest", "shortest", "most-images")
Indices = npt.NDArray[np.int64]

PAGE = 24
BUDGET_S = 0.2
EXTREMES = 1000
"""How many samples the orders longest, shortest and most-images have"""

_CHUNK = 1 << 16
_FIRST_BATCH, _LARGEST_BATCH = 32, 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What a sample must have to be shown. Lengths count text tokens + tiles x image_tokens; records are its branches.

    note and text read each sample; the others are answered by manifest and indexes. text: in the text of a record, with
    the beginning that it may have in common with others. seed: of the order random.
    """

    dataset: str = ""
    split: str = ""
    min_images: int = 0
    max_images: int | None = None
    min_length: int = 0
    max_length: int | None = None
    min_records: int = 0
    note: str = ""
    text: str = ""
    order: Order = "build"
    seed: int = 0

    @property
    def reads_samples(self) -> bool:
        return bool(self.note or self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """numbers: the samples found, and their places in the order. start, end: the places [start, end) that were scanned.

    is_cut: the time was used up before the page was full or the order ended. total: all places of the order.
    """

    numbers: tuple[int, ...]
    places: tuple[int, ...]
    start: int
    end: int
    total: int
    is_cut: bool


class Selection:
    """The samples of a build that pass filters, in an order. Raises ConfigError for names that the build lacks."""

    def __init__(self, build: Build, tokenizer: TextTokenizer, filters: Filters) -> None:
        problems = []
        if filters.dataset and filters.dataset not in build.datasets:
            problems.append(
                f"no dataset {filters.dataset}; this build has {', '.join(build.datasets)}"
                f"{nearest(filters.dataset, build.datasets)}"
            )
        if filters.split and filters.split not in build.splits:
            problems.append(f"no split {filters.split}; a build has {' and '.join(build.splits)}")
        if problems:
            raise ConfigError(problems)
        self.build, self.tokenizer, self.filters = build, tokenizer, filters
        self._ranges = _ranges(build, filters)
        self._ends = np.cumsum([stop - start for start, stop in self._ranges], dtype=np.int64)
        self._size = int(self._ends[-1]) if len(self._ends) else 0
        self._permutation = Permutation(self._size, make_key("view", filters.seed)) if self._size else None

    def __len__(self) -> int:
        """Places of the order; those of samples that the filters drop are among them."""
        return len(self._extremes) if self._is_sorted else self._size

    def numbers(self, places: Indices) -> Indices:
        """The samples at places of the order."""
        if self._is_sorted:
            return self._extremes[places]
        if self.filters.order == "random" and self._permutation is not None:
            places = self._permutation(places)
        return self._numbered(places)

    def number(self, place: int) -> int:
        """The sample at one place of the order."""
        return int(self.numbers(np.array([place]))[0])

    def page(self, place: int, *, backward: bool = False, most: int = PAGE, budget_s: float | None = None) -> Page:
        """The page that starts at a place, or with `backward` the one that ends before it. Raises ShardError."""
        total = len(self)
        place = min(max(place, 0), total)
        numbers: list[int] = []
        places: list[int] = []
        deadline = time.monotonic() + (BUDGET_S if budget_s is None else budget_s)
        reached, batch = place, _FIRST_BATCH
        while len(numbers) < most and (reached > 0 if backward else reached < total):
            scan = (
                np.arange(max(0, reached - batch), reached)[::-1]
                if backward
                else np.arange(reached, min(reached + batch, total))
            )
            candidates = self.numbers(scan)
            passed = self._pass_index(candidates)
            for scanned, number, is_kept in zip(scan.tolist(), candidates.tolist(), passed.tolist(), strict=True):
                reached = scanned if backward else scanned + 1
                if is_kept and (not self.filters.reads_samples or self._passes_reading(number)):
                    numbers.append(number)
                    places.append(scanned)
                if len(numbers) == most or (self.filters.reads_samples and time.monotonic() > deadline):
                    break
            if time.monotonic() > deadline:
                break
            batch = min(batch * 2, _LARGEST_BATCH)
        if backward:
            numbers.reverse()
            places.reverse()
        start, end = (reached, place) if backward else (place, reached)
        is_cut = len(numbers) < most and (start > 0 if backward else end < total)
        return Page(numbers=tuple(numbers), places=tuple(places), start=start, end=end, total=total, is_cut=is_cut)

    def every(self) -> Iterator[int]:
        """All samples that pass, in order, for a program that may take its time."""
        for start in range(0, len(self), _LARGEST_BATCH):
            candidates = self.numbers(np.arange(start, min(start + _LARGEST_BATCH, len(self))))
            for number in candidates[self._pass_index(candidates)].tolist():
                if not self.filters.reads_samples or self._passes_reading(number):
                    yield number

    @property
    def _is_sorted(self) -> bool:
        return self.filters.order not in ("build", "random")

    @cached_property
    def _extremes(self) -> Indices:
        """The first of a sorted order: lengths of the whole build are looked through once, in pieces."""
        best = np.empty(0, np.int64)
        values = np.empty(0, np.int64)
        for start in range(0, self._size, _CHUNK):
            numbers = self._numbered(np.arange(start, min(start + _CHUNK, self._size)))
            lengths, images = counts_of(self.build, numbers)
            kept = self._within(lengths, images) & self._has_records(numbers)
            value = images if self.filters.order == "most-images" else lengths
            best = np.concatenate([best, numbers[kept]])
            values = np.concatenate([values, (value if self.filters.order == "shortest" else -value)[kept]])
            order = np.argsort(values, kind="stable")[:EXTREMES]
            best, values = best[order], values[order]
        return best

    def _numbered(self, places: Indices) -> Indices:
        if not self._ranges:
            return places
        which = self._ends.searchsorted(places, side="right")
        starts = np.array([start for start, _ in self._ranges], np.int64)
        before = self._ends - np.array([stop - start for start, stop in self._ranges], np.int64)
        numbered: Indices = starts[which] + places - before[which]
        return numbered

    def _pass_index(self, numbers: Indices) -> npt.NDArray[np.bool_]:
        filters, kept = self.filters, self._has_records(numbers)
        if (filters.min_images, filters.max_images, filters.min_length, filters.max_length) == (0, None, 0, None):
            return kept
        return kept & self._within(*counts_of(self.build, numbers))

    def _has_records(self, numbers: Indices) -> npt.NDArray[np.bool_]:
        if not self.filters.min_records:
            return np.ones(len(numbers), bool)
        enough: npt.NDArray[np.bool_] = self._records(numbers) >= self.filters.min_records
        return enough

    @cached_property
    def _records(self) -> RecordCounts:
        return RecordCounts(self.build)

    def _within(self, lengths: Indices, images: Indices) -> npt.NDArray[np.bool_]:
        filters = self.filters
        kept: npt.NDArray[np.bool_] = (images >= filters.min_images) & (lengths >= filters.min_length)
        if filters.max_images is not None:
            kept &= images <= filters.max_images
        if filters.max_length is not None:
            kept &= lengths <= filters.max_length
        return kept

    def _passes_reading(self, number: int) -> bool:
        """A damaged sample passes: it is shown with its fault rather than hidden."""
        try:
            _, sample = read_sample(self.build, number)
            if self.filters.note and self.filters.note not in (sample.metadata.get("notes") or ()):
                return False
            records = each_alone(sample, self.build.manifest.tokenizer.image_id)
            texts = (whole_text(record, self.tokenizer).casefold() for record in records)
            return any(self.filters.text.casefold() in text for text in texts)
        except ShardError:
            return True


def place_of(build: Build, number: int) -> tuple[str, int]:
    """(split, index in it) of a sample. Raises IndexError."""
    for split in build.splits:
        if 0 <= number < len(build[split]):
            return split, number
        number -= len(build[split])
    raise IndexError(f"no such sample; this build has {len(build):,}")


def read_sample(build: Build, number: int) -> tuple[str, Sample]:
    """(dataset, sample). Raises IndexError, or ShardError for one whose ids cannot be shown as text and images."""
    split, index = place_of(build, number)
    dataset, sample = build[split].named(index)
    tokenizer = build.manifest.tokenizer
    placeholders = int(np.count_nonzero(sample.ids == tokenizer.image_id))
    if placeholders != len(sample.images):
        raise ShardError(
            f"{sample.where}: it has {placeholders} placeholders and {len(sample.images)} images; rebuild it"
        )
    if len(sample.ids) and not 0 <= sample.ids.min() <= sample.ids.max() < tokenizer.num_embeddings:
        raise ShardError(f"{sample.where}: an id is outside the vocabulary; rebuild it")
    check_branches(sample, tokenizer.image_id)
    return dataset, sample


def counts_of(build: Build, numbers: Indices) -> tuple[Indices, Indices]:
    """Lengths and images of samples, both int64 [n], from the indexes. Raises ShardError."""
    lengths, images = np.empty(len(numbers), np.int64), np.empty(len(numbers), np.int64)
    first = 0
    for split in build.splits:
        samples = build[split]
        inside = np.flatnonzero((numbers >= first) & (numbers < first + len(samples)))
        if len(inside):
            counts = samples.counts(numbers[inside] - first)
            lengths[inside] = counts.text_tokens + counts.tiles * build.manifest.config.image_tokens
            images[inside] = counts.images
        first += len(samples)
    return lengths, images


def find_key(build: Build, key: str) -> int | None:
    """The number of the sample with a key; the key columns of the indexes are searched. Raises ShardError."""
    first = 0
    for split in build.splits:
        samples = build[split]
        for number, start in samples.shard_starts():
            in_shard = samples.shard(number).index.find(key)
            if in_shard is not None:
                return first + start + in_shard
        first += len(samples)
    return None


def _ranges(build: Build, filters: Filters) -> Sequence[tuple[int, int]]:
    """Ranges of numbers that dataset and split leave."""
    ranges, first = [], 0
    datasets = build.manifest.datasets
    for split in build.splits:
        for name, size in build[split].sizes.items():
            has_note = not filters.note or filters.note in datasets[name].notes
            if size and filters.dataset in ("", name) and filters.split in ("", split) and has_note:
                ranges.append((first, first + size))
            first += size
    return ranges
