"""What differs between two versions of a sample: text, labels, ids, images, metadata.

Rule: a text is what the build's own tokenizer makes of the ids, so it is what the model sees. A sample that cannot be
read is a difference with a fault, not the end of the comparison.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

import numpy as np
import xxhash

from dst import TextTokenizer, load_tokenizer
from preprocess.views.diff_manifest import Difference
from preprocess.views.diff_words import Piece, word_diff
from preprocess.views.sample_text import pieces_of, runs_of, whole_text
from shards import Build, Sample, ShardError
from shards.format.records import alone

ASPECTS: Mapping[str, str] = {
    "split": "moved between train and eval",
    "text": "another text",
    "labels": "the same text, of which other parts are trained",
    "ids": "the same text as other ids",
    "tokens": "other tokens, which were not read to find out more",
    "images": "other images, or in another order",
    "metadata": "other metadata only: notes, sources, sizes, references",
    "damaged": "cannot be read",
}
"""How a sample may differ; a changed sample may differ in several of them"""

_SHOWN_APART = ("dataset", "split")  # of metadata; both are shown on their own


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlace:
    """Where an image is: build[split][index].images[number], number from 0; and its name in the dataset."""

    split: str
    index: int
    number: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDifference:
    """An image that only one version has, or that has other bytes."""

    old: ImagePlace | None
    new: ImagePlace | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePlace:
    """Where a sample is, build[split][index], and its key; empty if the sample cannot be read.

    branch: of a record of it, the number of its branch, from 0.
    """

    split: str
    index: int
    branch: int | None = None
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleDifference:
    """A sample, or a record of one, that changed, was added (old is None) or was removed (new is None).

    text: pieces by words, marked "=", "-" and "+"; empty if the text is equal. labels: pieces of the same text, "+" if
    it is trained now and was not before, "-" the other way round. fault: why it cannot be read.
    """

    dataset: str
    id: str
    old: SamplePlace | None
    new: SamplePlace | None
    what: tuple[str, ...]
    text: tuple[Piece, ...] = ()
    labels: tuple[Piece, ...] = ()
    images: tuple[ImageDifference, ...] = ()
    metadata: tuple[Difference, ...] = ()
    fault: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"metadata": [difference.to_json() for difference in self.metadata]}


class TextReader:
    """A build with its tokenizer, opened once."""

    def __init__(self, build: Build, tokenizer: TextTokenizer | None = None) -> None:
        """tokenizer: another build's, if it is the same. Raises ShardError or TokenizerError if it cannot be read."""
        self.build = build
        self.tokenizer = tokenizer or load_tokenizer(build.tokenizer_folder())

    def sample(self, place: SamplePlace) -> Sample:
        """The sample, or its record at a branch as a sample of its own. Raises ShardError if it is damaged."""
        sample = self.build[place.split][place.index]
        return sample if place.branch is None else alone(sample, place.branch, self.build.manifest.tokenizer.image_id)

    def text(self, sample: Sample) -> str:
        """Raises ShardError for ids that cannot be decoded."""
        return whole_text(sample, self.tokenizer)

    def runs(self, sample: Sample) -> tuple[tuple[str, bool], ...]:
        """Its text in runs (text, trained). Raises ShardError for ids that cannot be decoded."""
        return runs_of(pieces_of(sample, self.tokenizer))[0]


def token_aspects(old: Sample, new: Sample, first: TextReader, second: TextReader) -> set[str]:
    """How two samples differ whose tokens do: text, or labels and ids.

    Raises ShardError for ids that cannot be decoded.
    """
    same_tokenizer = first.tokenizer is second.tokenizer
    if same_tokenizer and np.array_equal(old.ids, new.ids):
        return {"labels"}
    if first.text(old) != second.text(new):
        return {"text"}
    return {"ids", "labels"} if any(mark != "=" for mark, _ in _labels(first.runs(old), second.runs(new))) else {"ids"}


def describe(
    dataset: str,
    old: SamplePlace | None,
    new: SamplePlace | None,
    first: TextReader,
    second: TextReader,
    what: Sequence[str],
) -> SampleDifference:
    """The difference to show. what: the aspects found before, or "added" or "removed"."""
    try:
        before, after = (reader.sample(place) if place else None for reader, place in ((first, old), (second, new)))
        left, right = (_metadata(sample) for sample in (before, after))
        runs = [reader.runs(sample) if sample else () for reader, sample in ((first, before), (second, after))]
    except ShardError as error:
        return SampleDifference(
            dataset=dataset, id="", old=old, new=new, what=(*dict.fromkeys([*what, "damaged"]),), fault=str(error)
        )
    texts = ["".join(text for text, _ in side) for side in runs]
    return SampleDifference(
        dataset=dataset,
        id=str((right if new else left).get("id", "")),
        old=_named(old, before),
        new=_named(new, after),
        what=tuple(what),
        text=word_diff(*texts) if texts[0] != texts[1] else (),
        labels=_labels(*runs) if "labels" in what else (),
        images=tuple(_images(old, before, new, after)),
        metadata=_changed_metadata(left, right, _not_compared(old, new)) if old and new else (),
    )


def _named(place: SamplePlace | None, sample: Sample | None) -> SamplePlace | None:
    return replace(place, key=sample.key) if place and sample else None


def _metadata(sample: Sample | None) -> dict[str, Any]:
    return sample.metadata if sample else {}


def _labels(old: Sequence[tuple[str, bool]], new: Sequence[tuple[str, bool]]) -> tuple[Piece, ...]:
    """Pieces of a text that both have; none if the texts differ."""
    before, after = (
        np.repeat([trained for _, trained in runs], [len(text) for text, _ in runs]).astype(np.int8)
        for runs in (old, new)
    )
    text = "".join(piece for piece, _ in new)
    if len(before) != len(after) or not len(text):
        return ()
    change = after - before
    starts = [0, *(np.flatnonzero(np.diff(change)) + 1).tolist(), len(text)]
    marks = {0: "=", 1: "+", -1: "-"}
    return tuple(
        (marks[int(change[start])], text[start:end])  # type: ignore[misc]
        for start, end in pairwise(starts)
    )


def _images(
    old: SamplePlace | None, before: Sample | None, new: SamplePlace | None, after: Sample | None
) -> list[ImageDifference]:
    """In the order of the new sample; images in the same gap between equal ones are compared one by one."""
    left, right = _image_places(old, before), _image_places(new, after)
    first, second = (
        [xxhash.xxh3_64_intdigest(image) for image in sample.images] if sample else [] for sample in (before, after)
    )
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    differences: list[ImageDifference] = []
    for kind, start, end, new_start, new_end in matcher.get_opcodes():
        if kind == "equal":
            continue
        ours, theirs = left[start:end], right[new_start:new_end]
        for number in range(max(len(ours), len(theirs))):
            differences.append(
                ImageDifference(
                    old=ours[number] if number < len(ours) else None,
                    new=theirs[number] if number < len(theirs) else None,
                )
            )
    return differences


def _image_places(place: SamplePlace | None, sample: Sample | None) -> list[ImagePlace]:
    if place is None or sample is None:
        return []
    described = sample.metadata.get("images")
    names = (
        [image.get("name") if isinstance(image, Mapping) else None for image in described]
        if isinstance(described, list)
        else []
    )
    return [
        ImagePlace(
            split=place.split,
            index=place.index,
            number=number,
            name=str(names[number]) if number < len(names) else f"image {number + 1}",
        )
        for number in range(len(sample.images))
    ]


def _not_compared(old: SamplePlace, new: SamplePlace) -> tuple[str, ...]:
    """Metadata that are shown on their own, or that a record of several does not have."""
    return _SHOWN_APART if old.branch is new.branch is None else (*_SHOWN_APART, "notes")


def _changed_metadata(
    old: Mapping[str, Any], new: Mapping[str, Any], not_compared: Sequence[str]
) -> tuple[Difference, ...]:
    sides = [{key: json.dumps(value, ensure_ascii=False) for key, value in side.items()} for side in (old, new)]
    return tuple(
        Difference(name=key, old=sides[0].get(key), new=sides[1].get(key))
        for key in dict.fromkeys([*old, *new])
        if key not in not_compared and sides[0].get(key) != sides[1].get(key)
    )
