"""What the page of a sample says, apart from how it is laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dst import IGNORE, TextTokenizer
from preprocess.conversation import NOTES
from preprocess.viewer.opened_build import OpenedBuild
from preprocess.viewer.selection import place_of, read_sample
from preprocess.viewer.turns import ChatTurn, turns_of
from preprocess.views.sample_text import frame_text, pieces_of
from shards import Sample, ShardError

TOKENS_PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """width, height: in pixels, as the metadata says. detail: which frame of what, or its size before resizing."""

    name: str
    width: int
    height: int
    size_bytes: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleView:
    """A sample as people look at it. fault: why it cannot be read; then only number, dataset and split are known."""

    number: int
    split: str
    dataset: str = ""
    key: str = ""
    id: str = ""
    turns: tuple[ChatTurn, ...] = ()
    images: tuple[StoredImage, ...] = ()
    sources: tuple[tuple[str, str], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    references: tuple[str, ...] = ()
    text_tokens: int = 0
    trained_tokens: int = 0
    length: int = 0
    fault: str = ""

    @property
    def has_roles(self) -> bool:
        return any(turn.role == "user" for turn in self.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """A token, or all places of an image. first, last: its places in the sequence that the model sees."""

    first: int
    last: int
    id: int
    text: str
    is_trained: bool
    image: int | None


def view_sample(opened: OpenedBuild, number: int) -> SampleView:
    """Raises IndexError if there is no such sample. A damaged one is a view with its fault."""
    split, _ = place_of(opened.build, number)
    try:
        dataset, sample = read_sample(opened.build, number)
        return sample_view(opened, sample, number=number, dataset=dataset, split=split)
    except ShardError as error:
        return SampleView(number=number, split=split, fault=str(error))


def sample_view(opened: OpenedBuild, sample: Sample, *, number: int, dataset: str, split: str) -> SampleView:
    """Raises ShardError for metadata that is not what FORMAT.md says."""
    metadata = sample.metadata
    try:
        images = tuple(
            _stored_image(image, len(data)) for image, data in zip(metadata["images"], sample.images, strict=True)
        )
        sources = tuple((str(source["file"]), str(source["record"])) for source in metadata["sources"])
        identity = str(metadata["id"])
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{sample.where}: its metadata is not as FORMAT.md says ({error!r}); rebuild it") from None
    text_tokens = len(sample.ids) - len(images)
    return SampleView(
        number=number,
        split=split,
        dataset=dataset,
        key=sample.key,
        id=identity,
        turns=turns_of(pieces_of(sample, opened.tokenizer), opened.openers(dataset)),
        images=images,
        sources=sources,
        notes=tuple((str(note), NOTES.get(note, "")) for note in metadata.get("notes") or ()),
        references=tuple(map(str, metadata.get("references") or ())),
        text_tokens=text_tokens,
        trained_tokens=int(np.count_nonzero(sample.labels != IGNORE)),
        length=text_tokens + len(images) * opened.build.manifest.config.image_tokens,
    )


def token_rows(
    sample: Sample, tokenizer: TextTokenizer, image_tokens: int, start: int = 0, count: int = TOKENS_PAGE
) -> Sequence[TokenRow]:
    """Tokens [start, start + count) of a sample, as numbers of its ids."""
    is_image = sample.ids == tokenizer.image_id
    images_before = np.cumsum(is_image) - is_image
    rows = []
    for index in range(start, min(start + count, len(sample.ids))):
        token, images = int(sample.ids[index]), int(images_before[index])
        first = index + images * (image_tokens - 1)
        rows.append(
            TokenRow(
                first=first,
                last=first + (image_tokens - 1 if is_image[index] else 0),
                id=token,
                text=tokenizer.token(token),
                is_trained=bool(sample.labels[index] != IGNORE),
                image=images if is_image[index] else None,
            )
        )
    return rows


def _stored_image(image: Mapping[str, Any], size_bytes: int) -> StoredImage:
    resized = (
        f"resized from {image['original_width']} x {image['original_height']}" if "original_width" in image else ""
    )
    return StoredImage(
        name=str(image["name"]),
        width=int(image["width"]),
        height=int(image["height"]),
        size_bytes=size_bytes,
        detail=", ".join(filter(None, (frame_text(image), resized))),
    )
