"""The questions of a build's held-out samples; each answer of a sample makes one question.

Rules
- The prompt is the ids before the answer in the build, recorded answers to earlier questions included; nothing is
  rendered or tokenized again. References come from the build alone.
- Each branch of a sample is a record of its own: its questions have the common beginning and its own tokens before the
  answer, and its own references. So they are those of a build in which no records share a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from dst import IGNORE
from dst.tokenizer import TextTokenizer
from shards import Build, Sample
from shards.errors import ImageError, ShardError
from shards.format.records import alone, each_alone
from shards.format.shard_info import ShardList
from shards.images.geometry import Geometry
from shards.images.tiles import Grid
from trainer.errors import TrainError
from trainer.evaluation.metrics import Kind, kind_of, references_of
from trainer.evaluation.report import ReportImage
from trainer.inference.cached_decoder import Prompt
from trainer.inference.conversation import answer_text, expand_images
from trainer.inference.images import image_pixels, stack

SPLIT = "eval"

Show = Callable[[int, Sequence[memoryview], Sequence[Grid]], list[torch.Tensor]]
"""(index in the split, files of images, their grids) -> the tiles of what is shown, uint8 [tiles, 3, S, S] for each"""

_CUT = "answer_cut"
"""The compiler's note of a sample whose answer is incomplete: it cannot be a reference, and ends in no end token"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One answer of a record, which the model is asked to generate."""

    dataset: str
    key: str
    """Of the sample"""
    record: str
    """Id of the record; of records that `concat` joined, that of the first"""
    index: int
    """Of the sample in the split"""
    branch: int | None
    """Of the record in the sample, from 0; None if the sample has no branches"""
    number: int
    """Of the answer in the record, from 0"""
    after: int
    """Index in the record's ids where the previous answer ends; 0 for the first answer"""
    start: int
    """Index in the record's ids where this answer starts"""
    end_id: int
    positions: int
    """Number of positions of its prompt, images expanded"""
    num_images: int
    """In its prompt"""
    images: bytes
    """A digest of the images in its prompt"""
    kind: Kind
    references: tuple[str, ...]

    @property
    def name(self) -> str:
        """Sample, branch and answer, the latter two counted from 1."""
        branch = "" if self.branch is None else f", branch {self.branch + 1}"
        return f"{self.key}{branch}, answer {self.number + 1}"


def questions_of(build: Build, tokenizer: TextTokenizer, *, limit: int | None = None) -> list[Question]:
    """All questions of the held-out split, or those of at most `limit` records per dataset, evenly spread.

    A sample without branches counts as one record. Answers that were cut to limits.max_length are not asked for. Raises
    ShardError for a damaged sample.
    """
    image_tokens = build.manifest.config.image_tokens
    kinds = {name: kind_of(dataset.adapter) for name, dataset in build.manifest.datasets.items()}
    split = build[SPLIT]
    questions: list[Question] = []
    for index, num_records, numbers in _asked([each.shards[SPLIT] for each in build.manifest.datasets.values()], limit):
        dataset, sample = split.named(index)
        records = each_alone(sample, tokenizer.image_id)
        if len(records) != num_records:
            raise ShardError(
                f"{sample.where} has {len(records)} branches, the manifest says {num_records} of the sample there; see "
                "dsvl-prep verify"
            )
        if _CUT not in sample.metadata.get("notes", ()):
            for number in numbers:
                branch = None if sample.branch_ids is None else number
                questions += _questions(
                    records[number], dataset, index, branch, kinds[dataset], tokenizer, image_tokens
                )
    return questions


def prompt_for(build: Build, question: Question, geometry: Geometry, image_id: int, show: Show | None = None) -> Prompt:
    """The prompt of a question. show: other images in the place of its own.

    Raises TrainError for an image that cannot be decoded.
    """
    record = _record(build, question, image_id)
    ids = record.ids[: question.start]
    expanded, slots = expand_images(ids, image_id, build.manifest.config.image_tokens, record.grids)
    count = int((ids == image_id).sum())
    if show is not None:
        pixels = show(question.index, record.images[:count], record.grids[:count])
    else:
        pixels = decoded_images(build, question.index, record.images[:count], record.grids[:count], geometry)
    return Prompt(ids=expanded, images=stack(pixels, geometry.size), slots=slots, end_id=question.end_id)


def decoded_images(
    build: Build, index: int, images: Sequence[memoryview], grids: Sequence[Grid], geometry: Geometry
) -> list[torch.Tensor]:
    """The tiles of stored images of a held-out sample, uint8 [tiles, 3, S, S] each. Raises TrainError."""
    is_canvas = build.manifest.config.stores_canvases
    try:
        return [
            image_pixels(data, geometry, grid, is_canvas=is_canvas) for data, grid in zip(images, grids, strict=True)
        ]
    except ImageError as error:
        raise TrainError(f"{build[SPLIT].where(index)}: an image cannot be decoded: {error}") from None


def question_text(
    build: Build, question: Question, tokenizer: TextTokenizer, *, with_images: bool
) -> tuple[str, tuple[ReportImage, ...]]:
    """For the report: the text between the previous answer and this one, and the images in it.

    with_images: include their bytes, not only their names.
    """
    record = _record(build, question, tokenizer.image_id)
    first = int((record.ids[: question.after] == tokenizer.image_id).sum())
    end = int((record.ids[: question.start] == tokenizer.image_id).sum())
    names = [str(image.get("name")) for image in record.metadata.get("images", [])]
    images = tuple(
        ReportImage(name=names[index], content=bytes(record.images[index]) if with_images else b"")
        for index in range(first, end)
    )
    return tokenizer.decode(record.ids[question.after : question.start].tolist()).strip(), images


def answer_spans(labels: npt.NDArray[np.int32]) -> list[tuple[int, int]]:
    """Ranges [start, end) of consecutive trained tokens."""
    edges = np.flatnonzero(np.diff((labels != IGNORE).astype(np.int8), prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _record(build: Build, question: Question, image_id: int) -> Sample:
    """The record of a question as a sample of its own."""
    sample = build[SPLIT][question.index]
    return sample if question.branch is None else alone(sample, question.branch, image_id)


def _questions(
    record: Sample,
    dataset: str,
    index: int,
    branch: int | None,
    kind: Kind,
    tokenizer: TextTokenizer,
    image_tokens: int,
) -> Iterator[Question]:
    spans = answer_spans(record.labels)
    metadata = record.metadata
    references = metadata.get("references")
    # A sample of several conversations has references for the first answer of each. Which answers these are is known if
    # every conversation has one answer; else only the sample's first answer is known to be one of them.
    has_one_each = isinstance(references, list) and len(references) == len(spans)
    for number, (start, end) in enumerate(spans):
        ids = record.ids[:start]
        num_images = int((ids == tokenizer.image_id).sum())
        digest = xxhash.xxh3_128()
        for image in record.images[:num_images]:
            digest.update(xxhash.xxh3_128_digest(image))
        end_id = int(record.ids[end - 1])
        answer = answer_text(tokenizer, record.ids[start:end].tolist(), end_id)
        yield Question(
            dataset=dataset,
            key=record.key,
            record=str(metadata.get("id", "")),
            index=index,
            branch=branch,
            number=number,
            after=spans[number - 1][1] if number else 0,
            start=start,
            end_id=end_id,
            positions=start + sum(grid.tiles * image_tokens - 1 for grid in record.grids[:num_images]),
            num_images=num_images,
            images=digest.digest(),
            kind=kind,
            references=references_of(metadata, number, answer) if has_one_each or number == 0 else (answer,),
        )


def _asked(datasets: Iterable[ShardList], limit: int | None) -> Iterator[tuple[int, int, list[int]]]:
    """Of each sample that is asked about: its index in the split, how many records it has, and which of them are asked.

    limit: most records of a dataset, evenly spread over those that it has.
    """
    first = 0
    for shards in datasets:
        each = [np.repeat(np.arange(len(counts)) + 1, counts) for counts in shards.by_branches]
        records = np.concatenate([np.zeros(0, np.int64), *each])  # of each sample
        ends = records.cumsum()
        size = shards.records
        count = size if limit is None else min(limit, size)
        asked = np.arange(count) * size // max(count, 1)
        samples = ends.searchsorted(asked, side="right")
        in_sample = asked - (ends - records)[samples]
        for sample, pairs in groupby(zip(samples.tolist(), in_sample.tolist(), strict=True), key=itemgetter(0)):
            yield first + sample, int(records[sample]), [number for _, number in pairs]
        first += len(records)
