"""Texts without the differences that mean nothing, and questions that share a long run of words with known ones."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import xxhash

_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]+")
"""Runs of letters and digits; in Chinese, Japanese and Korean, which write few spaces, each character"""


def normalised(text: str) -> str:
    """Unicode's compatibility form (NFKC) without case, with one space for any whitespace. Punctuation stays."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words_of(text: str) -> list[str]:
    """The words of a text, normalised and without punctuation."""
    return _WORDS.findall(normalised(text))


def ngram_hashes(text: str, size: int) -> Iterator[int]:
    """A 64-bit hash of every run of `size` words; none for a shorter text."""
    words = words_of(text)
    for start in range(len(words) - size + 1):
        yield xxhash.xxh3_64_intdigest(" ".join(words[start : start + size]).encode(), seed=size)


def too_short(texts: Iterable[str], size: int) -> int:
    """How many texts have fewer words than an n-gram, so that they match nothing."""
    return sum(len(words_of(text)) < size for text in texts)


class QuestionIndex:
    """The n-grams of known questions: hashes uint64 [N], ascending, and the number of a question for each."""

    def __init__(self, hashes: npt.NDArray[np.uint64], owners: npt.NDArray[np.int64], sizes: Sequence[int]) -> None:
        self.hashes = hashes
        self.owners = owners
        self.sizes = tuple(sizes)

    @classmethod
    def of(cls, questions: Iterable[tuple[str, int]]) -> QuestionIndex:
        """questions: (text, words in an n-gram of it); they are numbered from 0."""
        hashes, owners = array("Q"), array("q")
        sizes: set[int] = set()
        for number, (text, size) in enumerate(questions):
            grams = list(ngram_hashes(text, size))
            hashes.extend(grams)
            owners.extend([number] * len(grams))
            sizes |= {size} if grams else set()
        unique, first = np.unique(np.array(hashes, dtype=np.uint64), return_index=True)
        return cls(unique, np.array(owners, dtype=np.int64)[first], sorted(sizes))

    def match(self, texts: Iterable[str]) -> int:
        """The number of a question that shares an n-gram with one of the texts; -1 if none does."""
        for text in texts:
            for size in self.sizes:
                hashes = np.fromiter(ngram_hashes(text, size), dtype=np.uint64)
                if len(hashes) and len(self.hashes):
                    rows = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
                    equal = self.hashes[rows] == hashes
                    if equal.any():
                        return int(self.owners[rows[equal.argmax()]])
        return -1
