"""The text of a sample as the model sees it, cut where its kind changes.

Rule: the text comes only from ids and labels, through the build's own tokenizer. The text `<image>` in data is plain
text; only the id of the placeholder is an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, Literal

import numpy as np

from dst import IGNORE, TextTokenizer
from shards import Sample, ShardError

Kind = Literal["text", "control", "image"]


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


def pieces_of(sample: Sample, tokenizer: TextTokenizer) -> tuple[Piece, ...]:
    """All pieces in order; their texts joined are the text of the whole sample.

    A tokenizer may drop a space at the start of a decoded text, so each piece is decoded after the token before it.
    Raises ShardError for ids that cannot be decoded.
    """
    ids = sample.ids
    trained, image = sample.labels != IGNORE, sample.ids == tokenizer.image_id
    alone = np.isin(ids, np.fromiter(tokenizer.control_ids, np.int32)) | image
    changes = (trained[1:] != trained[:-1]) | alone[1:] | alone[:-1]
    borders = [0, *(np.flatnonzero(changes) + 1).tolist(), len(ids)]
    pieces, images = [], 0
    for start, end in pairwise(borders):
        kind: Kind = "image" if image[start] else "control" if alone[start] else "text"
        pieces.append(
            Piece(
                text=_decoded(sample, tokenizer, start, end),
                kind=kind,
                trained=bool(trained[start]),
                start=start,
                end=end,
                image=images if kind == "image" else None,
            )
        )
        images += kind == "image"
    return tuple(pieces)


def text_runs(sample: Sample, tokenizer: TextTokenizer) -> tuple[tuple[tuple[str, bool], ...], frozenset[int]]:
    """Runs of tokens that are all trained or all not, and all image placeholders or none; and the placeholder runs.

    Raises ShardError for ids that cannot be decoded.
    """
    runs: list[tuple[str, bool]] = []
    placeholders = set()
    pieces = pieces_of(sample, tokenizer)
    for (is_image, trained), run in groupby(pieces, key=lambda piece: (piece.kind == "image", piece.trained)):
        if is_image:
            placeholders.add(len(runs))
        runs.append(("".join(piece.text for piece in run), trained))
    return tuple(runs), frozenset(placeholders)


def whole_text(sample: Sample, tokenizer: TextTokenizer) -> str:
    """The text of all tokens. Raises ShardError for ids that cannot be decoded."""
    return _decoded(sample, tokenizer, 0, len(sample.ids))


def _decoded(sample: Sample, tokenizer: TextTokenizer, start: int, end: int) -> str:
    """The text of tokens [start, end) as it is after the token before them."""
    context = min(start, 1)
    ids = sample.ids[start - context : end].tolist()
    try:
        before = tokenizer.decode(ids[:context]) if context else ""
        return tokenizer.decode(ids)[len(before) :]
    except OverflowError as error:  # of a negative id
        raise ShardError(f"{sample.where}: its ids cannot be decoded ({error}); rebuild to write it again") from None


def frame_text(image: Mapping[str, Any]) -> str:
    """Which frame of an animation or a video an image is, by its metadata; empty for a whole file."""
    time = f" at {image['time_s']:g} s" if "time_s" in image else ""
    return f"frame {image['frame']}{time}" if "frame" in image else ""
