"""Where the elements of a JSON array begin, found without parsing them: at the speed of a disk.

Rule: a bracket counts if the number of quotation marks before it is even; a quotation mark after an odd number of
backslashes does not count. In sound JSON this is exact, whatever texts contain. Only elements that are objects or
arrays are seen, and unsound JSON gives wrong places: who reads a part of a file counts its elements and parses them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

_WINDOW = 1 << 18
"""Fits into the cache of a core with what is made of it"""
_QUOTE, _BACKSLASH, _OPENS, _CLOSES = 0x22, 0x5C, 0x7B, 0x7D
_TO_BRACE = 0x20
"""A bit that makes { of [, and } of ], and neither of anything else"""

Places = npt.NDArray[np.int64]


class ElementBorders:
    """Looks through the windows of a file in turn.

    depth: how many brackets are open; elements are at depth `level`. deepest: the largest depth so far. closings: how
    often the outermost bracket was closed.
    """

    def __init__(self, level: int) -> None:
        """level 1: the file has the array's own brackets; 0: it has only elements."""
        self.level = level
        self.depth = 0
        self.in_text = False
        self.deepest = 0
        self.closings = 0

    def starts(self, window: bytes) -> Places:
        """Where elements begin in the next window, which must not end with a backslash."""
        data = np.frombuffer(window, np.uint8)
        folded = data | _TO_BRACE
        marks = np.flatnonzero((folded == _OPENS) | (folded == _CLOSES) | (data == _QUOTE))
        if _BACKSLASH in window:
            marks = np.delete(marks, np.searchsorted(marks, _escaped(data, marks)))
        kinds = folded[marks]
        is_quote = kinds == _QUOTE
        inside = np.logical_xor.accumulate(is_quote) ^ self.in_text
        outside = np.flatnonzero(~(is_quote | inside))
        brackets, opens = marks[outside], kinds[outside] == _OPENS
        depths = self.depth + np.cumsum(opens.view(np.int8) * np.int8(2) - np.int8(1), dtype=np.int64)
        if len(marks):
            self.in_text = bool(inside[-1])
        if len(depths):
            self.depth = int(depths[-1])
            self.deepest = max(self.deepest, int(depths.max()))
            self.closings += int(np.count_nonzero(~opens & (depths <= 0)))
        starts: Places = brackets[opens & (depths == self.level + 1)]
        return starts


def windows(file: BinaryIO, size: int | None = None) -> Iterator[bytes]:
    """A file, or its next `size` bytes, in pieces that end with no backslash, unless the end does."""
    left = size
    while True:
        window = file.read(_WINDOW if left is None else min(left, _WINDOW))
        while window.endswith(b"\\") and (more := file.read(1)) and (left is None or len(window) < left):
            window += more
        if not window:
            return
        if left is not None:
            left -= len(window)
        yield window


def element_blocks(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """The next `size` bytes, elements with a comma after each, in runs of whole elements of about a window.

    Yields each run with the largest depth of brackets up to there.
    """
    borders = ElementBorders(0)
    waiting: list[bytes] = []
    for window in windows(file, size):
        starts = borders.starts(window)
        if len(starts):
            last = int(starts[-1])
            block = b"".join([*waiting, window[:last]])
            if block:
                yield block, borders.deepest
            waiting = [window[last:]]
        else:
            waiting.append(window)
    yield b"".join(waiting), borders.deepest


def _escaped(data: npt.NDArray[np.uint8], marks: Places) -> Places:
    """The marks that are quotation marks after an odd number of backslashes."""
    marked: Any = marks[(data[marks] == _QUOTE) & (marks > 0)]
    marked = marked[data[marked - 1] == _BACKSLASH]
    lengths = np.ones(len(marked), np.int64)
    longer = np.arange(len(marked))
    step = 2
    while len(longer):
        before = marked[longer] - step
        longer = longer[(before >= 0) & (data[np.maximum(before, 0)] == _BACKSLASH)]
        lengths[longer] += 1
        step += 1
    escaped: Places = marked[lengths % 2 == 1]
    return escaped
