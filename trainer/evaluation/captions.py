"""CIDEr-D and BLEU-1 to 4 of captions, by the program behind the published COCO numbers (the package pycocoevalcap).

Rule: only its arithmetic is used, which is plain Python. Its tokenizer is a Java program, so `caption_tokens` replaces
it: lower case; apostrophes, hyphens, dots and commas inside words stay; 's, 're, 've, 'll, 'd, 'm and n't are separate
words, as in the Penn Treebank; all other punctuation is removed. Scores differ from published ones where the two
tokenizers differ: brackets, signs such as & and #, abbreviations with dots. A sentence in a script without spaces is
one word. Predictions and references are tokenized in the same way.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dst.errors import ConfigError

PACKAGE = "pycocoevalcap"
BLEU_ORDERS = (1, 2, 3, 4)
_WORD = re.compile(r"[^\W_]+(?:[-.,'][^\W_]+)*")
_CLITIC = re.compile(r"(?:'(?:s|re|ve|ll|d|m)|n't)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionScores:
    """`cider` from 0 to 10 (papers print it times 100), `bleu[n - 1]` from 0 to 1; over all answers, and for each.

    CIDEr over all answers is the mean. BLEU is not: its counts are summed first. Where no sequence of n words matches,
    the package's BLEU-n is up to 0.0002 instead of 0, and up to 0.03 where no caption has n words.
    """

    cider: float
    bleu: tuple[float, ...]
    answer_cider: tuple[float, ...]
    answer_bleu: tuple[tuple[float, ...], ...]


def caption_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score each prediction against its own references, at least one each.

    CIDEr weighs words by how few of the references have them. So the score of one caption depends on the others that
    are scored with it, and a single caption scores 0. Vedantam, Zitnick and Parikh 2015 (CIDEr), Papineni et al.
    2002 (BLEU). Raises ConfigError if the package is not installed.
    """
    bleu_scorer = _load("pycocoevalcap.bleu.bleu").Bleu(max(BLEU_ORDERS))
    cider_scorer = _load("pycocoevalcap.cider.cider").Cider()
    tokenized = {index: [_tokenized(text)] for index, text in enumerate(predictions)}
    expected = {index: [_tokenized(text) for text in texts] for index, texts in enumerate(references)}
    bleu, answer_bleu = bleu_scorer.compute_score(expected, tokenized, verbose=0)
    if any(text for texts in expected.values() for text in texts):
        cider, answer_cider = cider_scorer.compute_score(expected, tokenized)
    else:  # the package takes the maximum over the words of all references
        cider, answer_cider = 0.0, [0.0] * len(tokenized)
    return CaptionScores(
        cider=float(cider),
        bleu=tuple(float(value) for value in bleu),
        answer_cider=tuple(float(value) for value in answer_cider),
        answer_bleu=tuple(tuple(float(value) for value in values) for values in zip(*answer_bleu, strict=True)),
    )


def caption_tokens(text: str) -> list[str]:
    """The words that captions are compared by; see the module's rule."""
    tokens = []
    for word in _WORD.findall(text.lower().replace("’", "'")):
        clitics: list[str] = []
        while (clitic := _CLITIC.search(word)) and clitic.start():
            clitics.insert(0, clitic[0])
            word = word[: clitic.start()]
        tokens += [word, *clitics]
    return tokens


def missing_package() -> str | None:
    """What to install before captions can be scored; None if nothing is missing."""
    try:
        _load("pycocoevalcap.cider.cider")
    except ConfigError as error:
        return error.problems[0]
    return None


def _tokenized(text: str) -> str:
    return " ".join(caption_tokens(text))


def _load(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != PACKAGE:
            raise
        raise ConfigError(
            [f"CIDEr and BLEU need the package {PACKAGE}, which is not installed; pip install 'dsvl[eval]'"]
        ) from None
