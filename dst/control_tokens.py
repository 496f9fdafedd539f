"""Keep text from data apart from the template's own control tokens.

Rule: a control token in the ids was written by the template, never by data. A literal `</s>` in a question stays five
characters of text.

How: before rendering, text that holds a control string, or could complete one together with its neighbour, is put
between two fence characters. Fences sit inside the text's outer white space, so a template's `trim` works as always.
After rendering they show where data is; `cuts` are the places where the tokenizer must start again so that no
control string is seen whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dst.errors import ControlTextError

# Unicode noncharacters (U+FDD0..U+FDEF) are set aside for a program's internal use.
_NONCHARACTERS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))


@dataclass(frozen=True, slots=True)
class Fences:
    """Two characters that occur in none of a conversation's texts."""

    opening: str
    closing: str

    def around(self, text: str) -> str:
        core = text.strip()
        if not core:
            return text
        start = text.index(core)
        return text[:start] + self.opening + core + self.closing + text[start + len(core) :]


@dataclass(frozen=True, slots=True)
class Fenced:
    """Rendered text without its fences, and the character ranges that came from data."""

    text: str
    data: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """A place to cut, and whether the control string that it breaks is within one text of the data."""

    position: int
    within_one_text: bool


def choose_fences(texts: Iterable[str]) -> Fences:
    """Raises ValueError if the texts use up all 32 noncharacters."""
    used = set().union(*(set(text) for text in texts))
    free = [character for character in _NONCHARACTERS if character not in used]
    if len(free) < 2:
        raise ValueError("the text holds all of Unicode's noncharacters; none is left to mark it with")
    return Fences(free[0], free[1])


def remove_fences(rendered: str, fences: Fences) -> Fenced | None:
    """None if a template tore a fenced text apart, so that nobody can tell what is data."""
    pieces: list[str] = []
    data: list[tuple[int, int]] = []
    position = 0
    for chunk in rendered.split(fences.opening):
        inside, closing, after = chunk.partition(fences.closing)
        if bool(closing) != bool(pieces) or fences.closing in after:
            return None
        if closing:
            data.append((position, position + len(inside)))
        pieces += [inside, after]
        position += len(inside) + len(after)
    return Fenced("".join(pieces), tuple(data))


class ControlStrings:
    """The strings that a tokenizer turns into control tokens, and the search for them."""

    def __init__(self, strings: Iterable[str]) -> None:
        self.strings = frozenset(strings)
        longest_first = sorted(self.strings, key=lambda string: (-len(string), string))
        alternatives = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._any = re.compile(alternatives)
        self._overlapping = re.compile(f"(?=({alternatives}))")
        self._reach = max(map(len, self.strings), default=1) - 1
        self._heads = frozenset(string[:end] for string in self.strings for end in range(1, len(string)))
        self._tails = frozenset(string[start:] for string in self.strings for start in range(1, len(string)))
        self._first = _any_of({string[0] for string in self.strings})
        self._last = _any_of({string[-1] for string in self.strings})
        self._joined = "\n".join(longest_first)

    def find(self, text: str) -> list[tuple[int, int]]:
        """Where control strings stand, as a tokenizer sees them: leftmost, longest, without overlap."""
        return [match.span() for match in self._any.finditer(text)]

    def touches(self, text: str) -> bool:
        """Whether the text holds a control string, or could complete one with the text next to it."""
        if self._any.search(text):
            return True
        head, tail = text[: self._reach], text[max(0, len(text) - self._reach) :]
        return (
            any(head[: match.end()] in self._tails for match in self._last.finditer(head))
            or any(tail[match.start() :] in self._heads for match in self._first.finditer(tail))
            or (0 < len(text) < self._reach and text in self._joined)
        )

    def cuts(self, fenced: Fenced, segments: Sequence[tuple[int, int]]) -> Iterator[Cut]:
        """Where to cut the text so that every control string with a character from data falls apart.

        segments: the ranges that are encoded on their own anyway, so no control string reaches from one into the next.
        Raises ControlTextError for a control string of one character, which cannot be cut.
        """
        for segment in segments:
            for match in self._overlapping.finditer(fenced.text, *segment):
                start, end = match.span(1)
                touched = next(((low, high) for low, high in fenced.data if low < end and start < high), None)
                if touched is None:
                    continue
                if end - start == 1:
                    raise ControlTextError(f"{match[1]!r} is a control token of one character and is in the data")
                low, high = touched
                yield Cut(start + 1 if low <= start else low, within_one_text=low <= start and end <= high)


def _any_of(characters: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(characters))) or "(?!)")
