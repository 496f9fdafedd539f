"""Which side of the split each conversation is on, and which ones the blend removes, over all datasets at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from preprocess.blend.config import Blend
from preprocess.blend.evaluation_sets import EvaluationInputs
from preprocess.compiler.contamination import KnownQuestions, contamination, known_questions
from preprocess.compiler.duplicates import duplicates
from preprocess.compiler.exclusions import Exclusion, Exclusions, exclude
from preprocess.compiler.fingerprints import FingerprintStage
from preprocess.compiler.image_copies import Copies, copies_by_bytes, copies_by_look
from preprocess.compiler.plan import assign_splits, has_eval_side, held_out
from preprocess.compiler.record_texts import record_texts
from preprocess.compiler.split_assignment import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """By dataset: the side of each row, and what is removed. questions: those that were compared, by evaluation set."""

    sides: Mapping[str, Side]
    exclusions: Exclusions
    questions: Sequence[KnownQuestions]


def select(blend: Blend, stage: FingerprintStage, evaluation_sets: Sequence[EvaluationInputs] = ()) -> Selection:
    """Images are read only if the split or a switch of the blend needs it. Raises DataError or OSError."""
    questions = known_questions(evaluation_sets)
    levels = {dataset.name: dataset.dedupe or blend.dedupe for dataset in blend.datasets}
    splits = has_eval_side(blend, stage.spools)
    by_look = copies_by_look(stage, blend.near_distance) if _needs_looks(blend, splits, levels) else None
    by_bytes = copies_by_bytes(stage) if "exact" in levels.values() or (splits and by_look is None) else None
    sides = assign_splits(blend, stage.spools, by_look or by_bytes)
    exclusions: dict[str, list[Exclusion]] = {name: [] for name in levels}
    kinds = {"off": None, "exact": by_bytes, "near": by_look}
    chosen: dict[str, Copies | None] = {name: kinds[level] for name, level in levels.items()}
    if any(chosen.values()):
        texts = record_texts(stage)
        for name, repeated in duplicates(stage.spools, texts, held_out(blend, stage.spools), chosen).items():
            exclusions[name].append(repeated)
    sides = exclude(sides, exclusions)
    for contaminated in contamination(evaluation_sets, questions, stage, sides, blend.near_distance):
        for name, part in contaminated.items():
            exclusions[name].append(part)
    return Selection(sides=exclude(sides, exclusions), exclusions=exclusions, questions=questions)


def _needs_looks(blend: Blend, splits: bool, levels: Mapping[str, str]) -> bool:
    return "near" in levels.values() or (splits and blend.split.copies == "near")
