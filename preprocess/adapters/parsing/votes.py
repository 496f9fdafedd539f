"""The answer of several people: the most frequent one, and of equally frequent ones the first."""

from __future__ import annotations

from collections.abc import Sequence


def most_frequent(answers: Sequence[str]) -> str | None:
    """None if no answer has text."""
    counts: dict[str, int] = {}
    for words in answers:
        if words:
            counts[words] = counts.get(words, 0) + 1
    return max(counts, key=counts.__getitem__, default=None)


def is_outvoted(words: str, answers: Sequence[str]) -> bool:
    """Whether another answer was given more often."""
    votes = answers.count(words)
    if 2 * votes >= len(answers):
        return False
    best = most_frequent(answers)
    return best is not None and answers.count(best) > votes
