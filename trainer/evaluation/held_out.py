"""The questions of a build's held-out samples; each answer of a sample makes one question.

Rule: the prompt is the ids before the answer in the build, recorded answers to earlier questions included; nothing is
rendered or tokenized again. References come from the build alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from dst import IGNORE
from dst.tokenizer import TextTokenizer
from shards import Build, Sample
from shards.errors import ImageError
from shards.images.geometry import Geometry
from trainer.errors import TrainError
from trainer.evaluation.metrics import Kind, kind_of, references_of
from trainer.evaluation.report import ReportImage
from trainer.inference.cached_decoder import Prompt
from trainer.inference.conversation import answer_text, expand_images, image_pixels, stack

SPLIT = "eval"

_CUT = "answer_cut"
"""The compiler's note of a sample whose answer is incomplete: it cannot be a reference, and ends in no end token"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One answer of a sample, which the model is asked to generate."""

    dataset: str
    key: str
    index: int
    """Of the sample in the split"""
    number: int
    """Of the answer in the sample, from 0"""
    after: int
    """Index in the sample's ids where the previous answer ends; 0 for the first answer"""
    start: int
    """Index in the sample's ids where this answer starts"""
    end_id: int
    positions: int
    """Number of positions of its prompt, images expanded"""
    kind: Kind
    references: tuple[str, ...]


def questions_of(build: Build, tokenizer: TextTokenizer, *, limit: int | None = None) -> list[Question]:
    """All questions of the held-out split, or those of at most `limit` samples per dataset, evenly spread.

    Answers that were cut to limits.max_length are not asked for. Raises ShardError for a damaged sample.
    """
    image_tokens = build.manifest.config.image_tokens
    kinds = {name: kind_of(dataset.adapter) for name, dataset in build.manifest.datasets.items()}
    split = build[SPLIT]
    questions: list[Question] = []
    for index in _spread(list(split.sizes.values()), limit):
        dataset, sample = split.named(index)
        if _CUT not in sample.metadata.get("notes", ()):
            questions += _questions(sample, dataset, index, kinds[dataset], tokenizer, image_tokens)
    return questions


def prompt_for(build: Build, question: Question, geometry: Geometry, image_id: int) -> Prompt:
    """The prompt of a question. Raises TrainError for an image that cannot be decoded."""
    sample = build[SPLIT][question.index]
    ids = sample.ids[: question.start]
    expanded, slots = expand_images(ids, image_id, build.manifest.config.image_tokens)
    try:
        pixels = [image_pixels(data, geometry) for data in sample.images[: len(slots)]]
    except ImageError as error:
        raise TrainError(f"{build[SPLIT].where(question.index)}: an image cannot be decoded: {error}") from None
    return Prompt(ids=expanded, images=stack(pixels, geometry.size), slots=slots, end_id=question.end_id)


def question_text(
    build: Build, question: Question, tokenizer: TextTokenizer, *, with_images: bool
) -> tuple[str, tuple[ReportImage, ...]]:
    """For the report: the text between the previous answer and this one, and the images in it.

    with_images: include their bytes, not only their names.
    """
    sample = build[SPLIT][question.index]
    first = int((sample.ids[: question.after] == tokenizer.image_id).sum())
    end = int((sample.ids[: question.start] == tokenizer.image_id).sum())
    names = [str(image.get("name")) for image in sample.metadata.get("images", [])]
    images = tuple(
        ReportImage(name=names[index], content=bytes(sample.images[index]) if with_images else b"")
        for index in range(first, end)
    )
    return tokenizer.decode(sample.ids[question.after : question.start].tolist()).strip(), images


def answer_spans(labels: npt.NDArray[np.int32]) -> list[tuple[int, int]]:
    """Ranges [start, end) of consecutive trained tokens."""
    edges = np.flatnonzero(np.diff((labels != IGNORE).astype(np.int8), prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _questions(
    sample: Sample, dataset: str, index: int, kind: Kind, tokenizer: TextTokenizer, image_tokens: int
) -> Iterator[Question]:
    spans = answer_spans(sample.labels)
    metadata = sample.metadata
    references = metadata.get("references")
    # A sample of several conversations has references for the first answer of each. Which answers these are is known if
    # every conversation has one answer; else only the sample's first answer is known to be one of them.
    has_one_each = isinstance(references, list) and len(references) == len(spans)
    for number, (start, end) in enumerate(spans):
        ids = sample.ids[:start]
        end_id = int(sample.ids[end - 1])
        answer = answer_text(tokenizer, sample.ids[start:end].tolist(), end_id)
        yield Question(
            dataset=dataset,
            key=sample.key,
            index=index,
            number=number,
            after=spans[number - 1][1] if number else 0,
            start=start,
            end_id=end_id,
            positions=start + int((ids == tokenizer.image_id).sum()) * (image_tokens - 1),
            kind=kind,
            references=references_of(metadata, number, answer) if has_one_each or number == 0 else (answer,),
        )


def _spread(sizes: list[int], limit: int | None) -> Iterator[int]:
    for start, size in zip([0, *accumulate(sizes)], sizes, strict=False):
        count = size if limit is None else min(limit, size)
        yield from (start + number * size // count for number in range(count))
