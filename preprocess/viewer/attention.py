"""What each token of a packed sequence may attend to, as ranges.

Causal: the tokens of its sample up to itself. MMCA (https://arxiv.org/abs/2309.14327): text attends to the earlier text
of its sample and, with weights of their own, to the earlier images; a token of an image attends to itself alone.
In a sample with branches, a token sees the common beginning and its own branch, and nothing of another branch.
trainer.attention computes the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

AttentionKind = Literal["mmca", "causal"]
ATTENTION_KINDS: tuple[AttentionKind, ...] = ("mmca", "causal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Tokens [start, end) of a sequence: a run of a sample's text, or one of its images. sample: its place in the row.

    trained: whether the text has labels. image: index of the image in its sample, or None for text. branch: 0 in what
    all records of the sample have, else the number of its branch.
    """

    start: int
    end: int
    sample: int
    trained: bool = False
    image: int | None = None
    branch: int = 0

    def is_seen_by(self, other: Span) -> bool:
        """Whether tokens of the other span attend to this one, as far as samples and branches decide it."""
        return self.sample == other.sample and self.branch in (0, other.branch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A part of the attention mask: queries [top, bottom) by keys [left, right).

    triangle: each query sees the keys up to itself. diagonal: each query sees itself alone. Else it sees all of them.
    """

    top: int
    bottom: int
    left: int
    right: int
    shape: Literal["all", "triangle", "diagonal"]
    over_images: bool


def attended_ranges(spans: Sequence[Span], token: int, kind: AttentionKind) -> list[tuple[int, int]]:
    """Ranges [start, end) of the keys that a token attends to, in order and without overlap; none for padding."""
    own = next((span for span in spans if span.start <= token < span.end), None)
    if own is None:
        return []
    if kind == "mmca" and own.image is not None:
        return [(token, token + 1)]
    ranges: list[tuple[int, int]] = []
    for span in spans:
        if span.is_seen_by(own) and span.start <= token:
            start, end = span.start, min(span.end, token + 1)
            if ranges and ranges[-1][1] == start:
                start = ranges.pop()[0]
            ranges.append((start, end))
    return ranges


def mask_blocks(spans: Sequence[Span], kind: AttentionKind) -> list[Block]:
    """The mask of a sequence: a few blocks for each pair of spans of a sample, none for each token."""
    blocks = []
    for query in spans:
        for key in spans:
            if not key.is_seen_by(query) or key.start > query.start:
                continue
            is_own = key is query
            if kind == "mmca" and query.image is not None and not is_own:
                continue
            shape: Literal["all", "triangle", "diagonal"] = "all"
            if is_own:
                shape = "diagonal" if kind == "mmca" and query.image is not None else "triangle"
            blocks.append(
                Block(
                    top=query.start,
                    bottom=query.end,
                    left=key.start,
                    right=key.end,
                    shape=shape,
                    over_images=key.image is not None,
                )
            )
    return blocks
