"""The questions that a build's held-out samples ask, each answer a question of its own.

Rule: an answer's prompt is the ids that stand before it in the build, recorded answers to earlier questions included;
nothing is rendered or tokenized anew. What counts as right comes from the build alone.
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
from trainer.evaluation.report import Picture
from trainer.inference.cached_decoder import Prompt
from trainer.inference.conversation import answer_text, expand_images, see, stack

SPLIT = "eval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One answer of a sample that the model is to give itself."""

    dataset: str
    key: str
    index: int
    """Of the sample in the split"""
    number: int
    """Of the answer in the sample, from 0"""
    after: int
    """Where the answer before it ends, in the sample's ids; 0 for the first"""
    start: int
    """Where this answer starts"""
    end_id: int
    positions: int
    """Of its prompt, pictures expanded"""
    kind: Kind
    references: tuple[str, ...]


def questions_of(build: Build, tokenizer: TextTokenizer, *, limit: int | None = None) -> list[Question]:
    """All questions of the held-out split, or those of at most `limit` samples of each dataset, evenly spread.

    Raises ShardError for a damaged sample.
    """
    image_tokens = build.manifest.config.image_tokens
    kinds = {name: kind_of(dataset.adapter) for name, dataset in build.manifest.datasets.items()}
    split = build[SPLIT]
    found: list[Question] = []
    for index in _spread(list(split.sizes.values()), limit):
        dataset, sample = split.named(index)
        found += _questions(sample, dataset, index, kinds[dataset], tokenizer, image_tokens)
    return found


def prompt_for(build: Build, question: Question, geometry: Geometry, image_id: int) -> Prompt:
    """Raises TrainError for a picture that cannot be decoded."""
    sample = build[SPLIT][question.index]
    ids = sample.ids[: question.start]
    expanded, slots = expand_images(ids, image_id, build.manifest.config.image_tokens)
    try:
        pixels = [see(data, geometry) for data in sample.images[: len(slots)]]
    except ImageError as error:
        raise TrainError(f"{build[SPLIT].where(question.index)}: a picture cannot be decoded: {error}") from None
    return Prompt(ids=expanded, images=stack(pixels, geometry.size), slots=slots, end_id=question.end_id)


def shown(
    build: Build, question: Question, tokenizer: TextTokenizer, *, with_pictures: bool
) -> tuple[str, tuple[Picture, ...]]:
    """What the model reads between the answer before and this one, and the pictures there, for the report.

    with_pictures: their bytes too, and not their names alone.
    """
    sample = build[SPLIT][question.index]
    before = int((sample.ids[: question.after] == tokenizer.image_id).sum())
    until = int((sample.ids[: question.start] == tokenizer.image_id).sum())
    names = [str(image.get("name")) for image in sample.metadata.get("images", [])]
    pictures = tuple(
        Picture(name=names[number], content=bytes(sample.images[number]) if with_pictures else b"")
        for number in range(before, until)
    )
    return tokenizer.decode(sample.ids[question.after : question.start].tolist()).strip(), pictures


def answer_spans(labels: npt.NDArray[np.int32]) -> list[tuple[int, int]]:
    """Ranges [start, end) of the trained runs."""
    edges = np.flatnonzero(np.diff((labels != IGNORE).astype(np.int8), prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _questions(
    sample: Sample, dataset: str, index: int, kind: Kind, tokenizer: TextTokenizer, image_tokens: int
) -> Iterator[Question]:
    spans = answer_spans(sample.labels)
    metadata = sample.metadata
    references = metadata.get("references")
    # Conversations that were joined to a sample have references for their first answers. Which answers these are can be
    # told where each conversation has one; else only the sample's first is sure to be one.
    one_each = isinstance(references, list) and len(references) == len(spans)
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
            references=references_of(metadata, number, answer) if one_each or number == 0 else (answer,),
        )


def _spread(sizes: list[int], limit: int | None) -> Iterator[int]:
    for start, size in zip([0, *accumulate(sizes)], sizes, strict=False):
        count = size if limit is None else min(limit, size)
        yield from (start + number * size // count for number in range(count))
