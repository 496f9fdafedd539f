"""Training records that show an image or repeat a question of an evaluation set.

One image is enough, since a model that saw an evaluation image with other words has still seen it. A question needs a
long run of equal words: short ones ("What is in the image?") are everywhere. Records of the eval side stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocess.blend.evaluation_sets import EvaluationInputs, EvaluationSet
from preprocess.compiler.exclusions import Exclusion
from preprocess.compiler.fingerprints import FingerprintStage, ImageTable
from preprocess.compiler.record_texts import record_texts
from preprocess.compiler.reference_images import reference_images
from preprocess.compiler.split_assignment import EXCLUDED, TRAIN, Side
from preprocess.dedupe.fingerprint import Fingerprints, Level
from preprocess.dedupe.match import KINDS, match_images
from preprocess.dedupe.questions import read_questions
from preprocess.dedupe.texts import QuestionIndex, too_short, words_of
from preprocess.errors import DataError

Rows = npt.NDArray[np.int64]

REASON = "contaminated"
_SHOWN_CHARACTERS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownQuestions:
    """The questions of an evaluation set. file: as the blend names it. too_short: those with fewer words than ngram."""

    file: str
    ngram: int
    texts: Sequence[str]
    too_short: int


def known_questions(sets: Sequence[EvaluationInputs]) -> tuple[KnownQuestions, ...]:
    """Raises DataError if a file cannot be read, or all of its questions are too short to match anything."""
    return tuple(_questions_of(one.questions, one.keys) for one in sets if one.questions is not None)


def contamination(
    sets: Sequence[EvaluationInputs],
    questions: Sequence[KnownQuestions],
    stage: FingerprintStage,
    sides: Mapping[str, Side],
    distance: int,
) -> Iterator[dict[str, Exclusion]]:
    """Dataset -> the train rows to remove: first those of each evaluation set's images, then those of all questions.

    A row is in one exclusion only. distance: of perceptual hashes, in bits. Raises DataError or OSError.
    """
    remaining = {name: side.copy() for name, side in sides.items()}
    for find in (partial(_by_images, sets, distance=distance), partial(_by_questions, questions)):
        for contaminated in find(stage, remaining):
            for name, part in contaminated.items():
                remaining[name][part.rows] = EXCLUDED
            yield contaminated


def _by_images(
    sets: Sequence[EvaluationInputs], stage: FingerprintStage, sides: Mapping[str, Side], distance: int
) -> Iterator[dict[str, Exclusion]]:
    if not any(evaluation.images for evaluation in sets):
        return
    images = ImageTable(stage)
    known: dict[Level, Fingerprints] = {}
    for evaluation in sets:
        if evaluation.images is None:
            continue
        level: Level = "look" if evaluation.keys.match == "near" else "bytes"
        references = reference_images(evaluation.images, stage, level)
        if level not in known:
            known[level] = stage.fingerprints(images, np.arange(len(images)), level)
        limit = distance if level == "look" else None
        match, kind = match_images(known[level], references.fingerprints, limit, threads=stage.threads)
        describe = partial(_shown, where=str(evaluation.keys.images), names=references.names, match=match, kind=kind)
        result = {}
        for name, side in sides.items():
            numbers = images.numbers[name]
            rows = np.repeat(np.arange(len(side)), stage.spools[name].counts("images"))
            shown = np.flatnonzero((match[numbers] >= 0) & (side[rows] == TRAIN))
            contaminated, first = np.unique(rows[shown], return_index=True)
            matches = numbers[shown[first]]
            result[name] = Exclusion(reason=REASON, rows=contaminated, matches=matches, describe=describe)
        yield result


def _shown(number: int, *, where: str, names: Sequence[str], match: Rows, kind: npt.NDArray[np.uint8]) -> str:
    """number: of an image of the blend."""
    return f"shows {names[match[number]]} of {where} (match by {KINDS[kind[number]]})"


def _by_questions(
    sets: Sequence[KnownQuestions], stage: FingerprintStage, sides: Mapping[str, Side]
) -> Iterator[dict[str, Exclusion]]:
    questions = [(text, one.ngram, one.file) for one in sets for text in one.texts]
    if not questions:
        return

    def describe(number: int) -> str:
        text, size, file = questions[number]
        return f"repeats {size} words of a question of {file}: {text[:_SHOWN_CHARACTERS]!r}"

    texts = record_texts(stage, QuestionIndex.of((text, size) for text, size, _ in questions))
    result = {}
    for name, side in sides.items():
        rows = np.flatnonzero((texts[name]["question"] >= 0) & (side == TRAIN))
        matches = texts[name]["question"][rows]
        result[name] = Exclusion(reason=REASON, rows=rows, matches=matches, describe=describe)
    yield result


def _questions_of(path: Path, keys: EvaluationSet) -> KnownQuestions:
    texts = read_questions(path, keys.question_key)
    short = too_short(texts, keys.ngram)
    if short == len(texts):
        longest = max((len(words_of(text)) for text in texts), default=0)
        raise DataError(
            f"{path}: its longest question has {longest} words; expected one of at least {keys.ngram}, or nothing can "
            "match; set a smaller ngram for this evaluation set"
        )
    return KnownQuestions(file=str(keys.questions), ngram=keys.ngram, texts=texts, too_short=short)
