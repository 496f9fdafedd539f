"""The text of a sample as the model sees it, cut where its kind changes.

Rule: the text comes only from ids and labels, through the build's own tokenizer. The text `<image>` in data is plain
text; only the id of the placeholder is an image. A sample with branches has a text for each of its records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, Literal

import numpy as np

from dst import IGNORE, TextTokenizer
from shards import Sample, ShardError
from shards.format.records import SampleRecord, each_alone, records_of
from shards.images.tiles import Grid

Kind = Literal["text", "control", "image"]

_LONGEST_CHARACTER = 4
"""Tokens, where each is a byte. A beginning may end, and a branch start, within a character"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Tokens [start, end) of a sample that are alike. A control token, and a placeholder, is a piece of its own.

    image: index of the image that a placeholder stands for, else None.
    """

    text: str
    kind: Kind
    trained: bool
    start: int
    end: int
    image: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordText:
    """A record of a sample with all its pieces, as the model sees it; a sample without branches is one record.

    sample: the record alone, of which start and end of the pieces are tokens. No piece crosses the end of the common
    beginning.
    """

    record: SampleRecord
    sample: Sample
    pieces: tuple[Piece, ...]

    @property
    def beginning(self) -> tuple[Piece, ...]:
        """The pieces that all records of the sample have; none if it has no branches."""
        return tuple(piece for piece in self.pieces if piece.end <= self.record.branch.beginning)

    @property
    def branch(self) -> tuple[Piece, ...]:
        """The pieces that are the record's own."""
        return tuple(piece for piece in self.pieces if piece.start >= self.record.branch.beginning)


def record_texts(sample: Sample, tokenizer: TextTokenizer) -> list[RecordText]:
    """The records of a sample in the order of its branches.

    Raises ShardError for ids that cannot be decoded, and for metadata or branches that are not as FORMAT.md says.
    """
    pairs = zip(records_of(sample, tokenizer.image_id), each_alone(sample, tokenizer.image_id), strict=True)
    return [
        RecordText(record=record, sample=own, pieces=pieces_of(own, tokenizer, border=record.branch.beginning))
        for record, own in pairs
    ]


def pieces_of(sample: Sample, tokenizer: TextTokenizer, *, border: int = 0) -> tuple[Piece, ...]:
    """All pieces of a sample without branches, in order; their texts joined are its text.

    A tokenizer may drop a space at the start of a decoded text, so each piece is decoded after the token before it.
    border: a token at which a piece begins in any case; a character that it divides is in the piece after it.
    Raises ShardError for ids that cannot be decoded.
    """
    ids = sample.ids
    trained, image = sample.labels != IGNORE, sample.ids == tokenizer.image_id
    alone = np.isin(ids, np.fromiter(tokenizer.control_ids, np.int32)) | image
    changes = (trained[1:] != trained[:-1]) | alone[1:] | alone[:-1]
    if 0 < border < len(ids):
        changes[border - 1] = True
    borders = [0, *(np.flatnonzero(changes) + 1).tolist(), len(ids)]
    pieces, images = [], 0
    for start, end in pairwise(borders):
        kind: Kind = "image" if image[start] else "control" if alone[start] else "text"
        pieces.append(
            Piece(
                text=_decoded(sample, tokenizer, start, end, _LONGEST_CHARACTER if start == border else 1),
                kind=kind,
                trained=bool(trained[start]),
                start=start,
                end=end,
                image=images if kind == "image" else None,
            )
        )
        images += kind == "image"
    return tuple(pieces)


def runs_of(pieces: Sequence[Piece]) -> tuple[tuple[tuple[str, bool], ...], frozenset[int]]:
    """Runs (text, trained), none partly trained or partly placeholders; and the numbers of the placeholder runs."""
    runs: list[tuple[str, bool]] = []
    placeholders = set()
    for (is_image, trained), run in groupby(pieces, key=lambda piece: (piece.kind == "image", piece.trained)):
        if is_image:
            placeholders.add(len(runs))
        runs.append(("".join(piece.text for piece in run), trained))
    return tuple(runs), frozenset(placeholders)


def whole_text(sample: Sample, tokenizer: TextTokenizer) -> str:
    """The text of a sample without branches. Raises ShardError for ids that cannot be decoded."""
    return _decoded(sample, tokenizer, 0, len(sample.ids), 0)


def _decoded(sample: Sample, tokenizer: TextTokenizer, start: int, end: int, before: int) -> str:
    """The text of tokens [start, end) as it is after this many tokens before them."""
    context = min(start, before)
    ids = sample.ids[start - context : end].tolist()
    try:
        known = tokenizer.decode(ids[:context]) if context else ""
        text = tokenizer.decode(ids)
    except OverflowError as error:  # of a negative id
        raise ShardError(f"{sample.where}: its ids cannot be decoded ({error}); rebuild to write it again") from None
    shared = next((place for place, pair in enumerate(zip(known, text, strict=False)) if len({*pair}) > 1), len(known))
    return text[shared:]


def tiles_text(grid: Grid) -> str:
    """How an image is cut; empty if it is one square."""
    return f"{grid.columns} x {grid.rows} tiles and an overview" if grid.tiles > 1 else ""


def frame_text(image: Mapping[str, Any]) -> str:
    """Which frame of an animation or a video an image is, by its metadata; empty for a whole file."""
    time = f" at {image['time_s']:g} s" if "time_s" in image else ""
    return f"frame {image['frame']}{time}" if "frame" in image else ""
