"""Slow, obvious twins of the scores: every subset written out, every n-gram looked at in every sentence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Words = Sequence[str]


def soft_score(matches: Sequence[bool]) -> float:
    """VQA accuracy from which people gave the answer: each is left out in turn, three of the others are enough."""
    scores = []
    for left_out in range(len(matches)):
        others = [match for person, match in enumerate(matches) if person != left_out]
        scores.append(min(sum(others) / 3, 1))
    return sum(scores) / len(scores)


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]], sigma: float = 6.0) -> list[float]:
    """CIDEr-D of each candidate: cosine of clipped tf-idf vectors, damped where lengths differ; 0 to 10."""
    return [
        10
        * sum(
            sum(_similarity(candidate, reference, order, references, sigma) for reference in own) / len(own)
            for order in (1, 2, 3, 4)
        )
        / 4
        for candidate, own in zip(candidates, references, strict=True)
    ]


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]], order: int) -> float:
    """Corpus BLEU: geometric mean of clipped precisions, times the penalty for answers that are too short."""
    logarithms = []
    for size in range(1, order + 1):
        right = total = 0
        for candidate, own in zip(candidates, references, strict=True):
            for ngram, count in _ngrams(candidate, size).items():
                total += count
                right += min(count, max(_ngrams(reference, size)[ngram] for reference in own))
        if not right:
            return 0.0
        logarithms.append(math.log(right / total))
    given = sum(len(candidate) for candidate in candidates)
    wanted = 0
    for candidate, own in zip(candidates, references, strict=True):
        wanted += min((abs(len(reference) - len(candidate)), len(reference)) for reference in own)[1]
    penalty = 1.0 if given >= wanted else math.exp(1 - wanted / given)
    return penalty * math.exp(sum(logarithms) / order)


def _similarity(
    candidate: Words, reference: Words, order: int, references: Sequence[Sequence[Words]], sigma: float
) -> float:
    ours, theirs = _weights(candidate, order, references), _weights(reference, order, references)
    norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
    if not norms:
        return 0.0
    dot = sum(min(weight, theirs.get(ngram, 0.0)) * theirs.get(ngram, 0.0) for ngram, weight in ours.items())
    return dot / norms * math.exp(-((len(candidate) - len(reference)) ** 2) / (2 * sigma**2))


def _weights(words: Words, order: int, references: Sequence[Sequence[Words]]) -> dict[tuple[str, ...], float]:
    weights = {}
    for ngram, count in _ngrams(words, order).items():
        pictures = sum(any(_ngrams(reference, order)[ngram] for reference in own) for own in references)
        weights[ngram] = count * math.log(len(references) / max(pictures, 1))
    return weights


def _ngrams(words: Words, order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + order]) for at in range(len(words) - order + 1))
