"""The text of a sample as the model sees it, cut where its kind changes.

Rule: the text comes only from ids and labels, through the build's own tokenizer. The text `<image>` in data is plain
text; only the id of the placeholder is an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal

import numpy as np

from dst import IGNORE, TextTokenizer
from shards import Sample

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
                text=_decoded(tokenizer, ids[max(0, start - 1) : end].tolist(), context=min(start, 1)),
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
    """Runs of tokens that are all trained or all not, and all image placeholders or none; and the placeholder runs."""
    runs: list[tuple[str, bool]] = []
    placeholders = set()
    pieces = pieces_of(sample, tokenizer)
    for (is_image, trained), run in groupby(pieces, key=lambda piece: (piece.kind == "image", piece.trained)):
        if is_image:
            placeholders.add(len(runs))
        runs.append(("".join(piece.text for piece in run), trained))
    return tuple(runs), frozenset(placeholders)


def _decoded(tokenizer: TextTokenizer, ids: list[int], *, context: int) -> str:
    """The text of ids[context:] as it is after the ids before them."""
    before = tokenizer.decode(ids[:context]) if context else ""
    return tokenizer.decode(ids)[len(before) :]
