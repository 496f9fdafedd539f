"""The difference of two texts by words, in bounded time.

Rule: the pieces marked "=" and "-" joined are the old text, those marked "=" and "+" the new one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Literal

Mark = Literal["=", "-", "+"]
Piece = tuple[Mark, str]

MOST_WORDS = 2_000
"""Of what differs; a longer stretch is shown as one deletion and one insertion, since the search is quadratic"""

_WORD = re.compile(r"\s+|\w+|[^\w\s]")


def word_diff(old: str, new: str) -> tuple[Piece, ...]:
    """Pieces in reading order; a deletion stands before the insertion that replaces it."""
    if old == new:
        return (("=", old),) if old else ()
    left, right = _WORD.findall(old), _WORD.findall(new)
    start = _common(left, right)
    end = _common(left[start:][::-1], right[start:][::-1])
    pieces: list[Piece] = [("=", "".join(left[:start]))]
    pieces += _middle(left[start : len(left) - end], right[start : len(right) - end])
    pieces.append(("=", "".join(left[len(left) - end :])))
    return tuple(_joined(pieces))


def shorten(pieces: Sequence[Piece], keep: int) -> tuple[Piece, ...]:
    """The pieces with at most `keep` characters of unchanged text next to a change; says how many are left out."""
    short: list[Piece] = []
    for number, (mark, text) in enumerate(pieces):
        head, tail = keep if number else 0, keep if number + 1 < len(pieces) else 0
        left_out = len(text) - head - tail
        if mark == "=" and left_out > keep:
            short.append(("=", f"{text[:head]} … {left_out:,} characters … {text[len(text) - tail :]}"))
        else:
            short.append((mark, text))
    return tuple(short)


def _common(left: Sequence[str], right: Sequence[str]) -> int:
    """How many words both begin with."""
    return next(
        (place for place, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )


def _middle(left: Sequence[str], right: Sequence[str]) -> Iterator[Piece]:
    if max(len(left), len(right)) > MOST_WORDS:
        yield "-", "".join(left)
        yield "+", "".join(right)
        return
    for kind, first, first_end, second, second_end in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if kind == "equal":
            yield "=", "".join(left[first:first_end])
        else:
            yield "-", "".join(left[first:first_end])
            yield "+", "".join(right[second:second_end])


def _joined(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Without empty pieces, and without spaces between two changes: their neighbours are one change."""
    waiting: dict[Mark, str] = {"-": "", "+": ""}
    for mark, text in pieces:
        if mark != "=":
            waiting[mark] += text
        elif text.isspace() and any(waiting.values()) and "\n" not in text:
            waiting["-"] += text
            waiting["+"] += text
        elif text:
            yield from _flushed(waiting)
            yield mark, text
    yield from _flushed(waiting)


def _flushed(waiting: dict[Mark, str]) -> Iterator[Piece]:
    """The two changes that wait, without the words that both end with."""
    old, new = waiting["-"], waiting["+"]
    spaces = ""
    while old and new and old[-1] == new[-1] and old[-1].isspace():
        spaces, old, new = old[-1] + spaces, old[:-1], new[:-1]
    if old:
        yield "-", old
    if new:
        yield "+", new
    if spaces:
        yield "=", spaces
    waiting["-"] = waiting["+"] = ""
