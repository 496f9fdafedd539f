"""The most frequent texts of a stream, in bounded memory."""

from __future__ import annotations

from collections import Counter

LONGEST = 300
"""Characters of a text that are compared and kept"""


class FrequentTexts:
    """Counts texts. Where more are different than it may hold, the rarest are forgotten (lossy counting).

    Source: Manku and Motwani, Approximate Frequency Counts over Data Streams (2002). A count is then at most
    `most_missing` too low, and no text that is more frequent than that is missing.
    """

    def __init__(self, capacity: int = 1 << 17) -> None:
        self._capacity = capacity
        self._counts: Counter[str] = Counter()
        self.most_missing = 0
        self.total = 0

    def add(self, text: str) -> None:
        self.total += 1
        self._counts[text[:LONGEST]] += 1
        if len(self._counts) > self._capacity:
            self.most_missing += 1
            self._counts = Counter({text: count - 1 for text, count in self._counts.items() if count > 1})

    def top(self, most: int) -> list[tuple[str, int]]:
        """The most frequent texts with their counts; those of equal count in the order of their text."""
        return sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))[:most]
