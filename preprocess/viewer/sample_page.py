"""What the page of a sample, and its card in the gallery, say, apart from how they are laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dst import IGNORE, TextTokenizer
from preprocess.conversation import NOTES
from preprocess.viewer.opened_build import OpenedBuild
from preprocess.viewer.selection import place_of, read_sample
from preprocess.viewer.turns import ChatTurn, Opener, turns_after, turns_of
from preprocess.views.sample_text import RecordText, frame_text, record_texts, tiles_text
from shards import Sample, ShardError
from shards.format.branches import Branch
from shards.format.records import SampleRecord
from shards.images.tiles import ONE_TILE, Grid

TOKENS_PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """width, height: in pixels, as the metadata says. detail: which frame of what, its size before resizing, tiles."""

    name: str
    width: int
    height: int
    size_bytes: int
    detail: str
    lines: str = ""
    """An SVG path between its tiles, in a view box of columns x rows; empty if it is one square, or has borders"""
    grid: Grid = ONE_TILE


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchView:
    """A record that shares the beginning of its sample. turns: of its own part. text_tokens: of that part."""

    record: SampleRecord
    turns: tuple[ChatTurn, ...]
    text_tokens: int
    trained_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleView:
    """A sample as people look at it. fault: why it cannot be read; then only number, dataset and split are known.

    turns: with branches, those of the beginning. separate_length: of its records in samples of their own, together.
    """

    number: int
    split: str
    dataset: str = ""
    key: str = ""
    id: str = ""
    turns: tuple[ChatTurn, ...] = ()
    branches: tuple[BranchView, ...] = ()
    images: tuple[StoredImage, ...] = ()
    sources: tuple[tuple[str, str], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    references: tuple[str, ...] = ()
    text_tokens: int = 0
    trained_tokens: int = 0
    tiles: int = 0
    """Of all images; one for each in a build without tiles"""
    length: int = 0
    separate_length: int = 0
    fault: str = ""

    @property
    def all_turns(self) -> tuple[ChatTurn, ...]:
        """Those of the beginning, then those of each branch."""
        return (*self.turns, *(turn for branch in self.branches for turn in branch.turns))

    @property
    def has_roles(self) -> bool:
        return any(turn.role == "user" for turn in self.all_turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A sample in the gallery; of one with branches, the question and the answer of the first record."""

    sample: SampleView
    link: str

    @property
    def question(self) -> str:
        texts = (piece.text for turn in self._turns if turn.role == "user" for piece in turn.pieces)
        return " ".join("".join(texts).split())

    @property
    def answer(self) -> str:
        return "".join(piece.text for turn in self._turns for piece in turn.pieces if piece.trained)

    @property
    def _turns(self) -> tuple[ChatTurn, ...]:
        return (*self.sample.turns, *(turn for branch in self.sample.branches[:1] for turn in branch.turns))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """A token, or all places of an image. first, last: its places in the sequence that the model sees.

    branch: 0 in what all records have, else the number of its branch. position: that of `first` for the model, which
    counts on from the end of the beginning in every branch.
    """

    first: int
    last: int
    id: int
    text: str
    is_trained: bool
    image: int | None
    branch: int
    position: int


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
    metadata, config = sample.metadata, opened.build.manifest.config
    try:
        has_lines = config.stores_canvases or config.image.fit == "squash"
        images = tuple(
            _stored_image(image, len(data), grid, has_lines=has_lines)
            for image, data, grid in zip(metadata["images"], sample.images, sample.grids, strict=True)
        )
        sources = tuple((str(source["file"]), str(source["record"])) for source in metadata["sources"])
        identity = str(metadata["id"])
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{sample.where}: its metadata is not as FORMAT.md says ({error!r}); rebuild it") from None
    openers, texts = opened.openers(dataset), record_texts(sample, opened.tokenizer)
    image_tokens = config.image_tokens
    text_tokens = len(sample.ids) - len(images)
    has_branches = sample.branch_ids is not None
    return SampleView(
        number=number,
        split=split,
        dataset=dataset,
        key=sample.key,
        id=identity,
        turns=turns_of(texts[0].beginning if has_branches else texts[0].pieces, openers),
        branches=tuple(_branch_view(text, openers) for text in texts) if has_branches else (),
        images=images,
        sources=sources,
        notes=tuple((str(note), NOTES.get(note, "")) for note in metadata.get("notes") or ()),
        references=() if has_branches else texts[0].record.references,
        text_tokens=text_tokens,
        trained_tokens=int(np.count_nonzero(sample.labels != IGNORE)),
        tiles=sample.tiles,
        length=text_tokens + sample.tiles * image_tokens,
        separate_length=sum(len(text.sample.ids) - len(images) + sample.tiles * image_tokens for text in texts),
    )


def _branch_view(text: RecordText, openers: Sequence[Opener]) -> BranchView:
    branch = text.record.branch
    return BranchView(
        record=text.record,
        turns=turns_after(turns_of(text.pieces, openers), branch.beginning),
        text_tokens=branch.end - branch.start,
        trained_tokens=sum(piece.end - piece.start for piece in text.branch if piece.trained),
    )


def token_rows(
    sample: Sample, tokenizer: TextTokenizer, image_tokens: int, start: int = 0, count: int = TOKENS_PAGE
) -> Sequence[TokenRow]:
    """Tokens [start, start + count) of a sample, as numbers of its ids."""
    is_image = sample.ids == tokenizer.image_id
    images_before = np.cumsum(is_image) - is_image
    tiles_before = np.cumsum([0, *(grid.tiles for grid in sample.grids)]).tolist()
    branch_ids = np.zeros(len(sample.ids), np.int32) if sample.branch_ids is None else sample.branch_ids
    branches = [Branch(0, 0, len(sample.ids)), *sample.branches]
    rows = []
    for index in range(start, min(start + count, len(sample.ids))):
        token, images = int(sample.ids[index]), int(images_before[index])
        first = index - images + tiles_before[images] * image_tokens
        own_tokens = sample.grids[images].tiles * image_tokens if is_image[index] else 1
        branch = branches[branch_ids[index]]
        rows.append(
            TokenRow(
                first=first,
                last=first + own_tokens - 1,
                id=token,
                text=tokenizer.token(token),
                is_trained=bool(sample.labels[index] != IGNORE),
                image=images if is_image[index] else None,
                branch=int(branch_ids[index]),
                position=first - (branch.start - branch.beginning),
            )
        )
    return rows


def _stored_image(image: Mapping[str, Any], size_bytes: int, grid: Grid, *, has_lines: bool) -> StoredImage:
    resized = (
        f"resized from {image['original_width']} x {image['original_height']}" if "original_width" in image else ""
    )
    return StoredImage(
        name=str(image["name"]),
        width=int(image["width"]),
        height=int(image["height"]),
        size_bytes=size_bytes,
        detail=", ".join(filter(None, (frame_text(image), resized, tiles_text(grid)))),
        lines=_lines(grid) if has_lines else "",
        grid=grid,
    )


def _lines(grid: Grid) -> str:
    upright = (f"M{column} 0V{grid.rows}" for column in range(1, grid.columns))
    across = (f"M0 {row}H{grid.columns}" for row in range(1, grid.rows))
    return "".join([*upright, *across])
