"""Score generated answers with VQA accuracy, exact match, CIDEr and BLEU: one row of numbers for every dataset.

Rule: the metrics of a dataset depend on what its answers are (its kind), never on the predictions. A build's manifest
names each dataset's adapter, and KIND_OF_ADAPTER gives the kind. Any other adapter, your own chat files included, gets
exact match only. docs/evaluation.md defines every metric.

    answers = [Answered(dataset="vqa", key=key, kind="vqa", prediction="two", references=("2", "2", "3")), ...]
    table = score(answers).datasets
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trainer.errors import TrainError
from trainer.evaluation.captions import BLEU_ORDERS, caption_scores, missing_package
from trainer.evaluation.vqa import ANSWERS_TO_MATCH, normalise, vqa_accuracy, vqa_accuracy_normalised

Kind = Literal["vqa", "reasoned", "caption", "text"]

METRICS = {
    "vqa_accuracy": "the official VQA accuracy, as the challenge's evaluation program computes it",
    "vqa_accuracy_normalised": "VQA accuracy with both sides always normalised; with 1 to 3 answers, a match is 1",
    "exact_match": "share of predictions that equal one of the references after normalisation",
    "cider": "CIDEr-D of captions, from 0 to 10",
    **{f"bleu_{order}": f"BLEU-{order} of captions, from 0 to 1" for order in BLEU_ORDERS},
}
"""Every metric of a report -> what it is, in the order of the tables"""

# vqa: a few words that several people gave; reasoned: such an answer inside "The answer is ... Because ...";
# caption: sentences about an image; text: everything else.
KIND_OF_ADAPTER: dict[str, Kind] = {
    "aokvqa": "reasoned",
    "coco_caption": "caption",
    "minigpt4": "caption",
    "vqa_v2": "vqa",
}
_REASONED = re.compile(r"\s*the answer is:?\s+(.+?)(?:\.\s+because\b.*|\.?\s*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A model's answer (`prediction`), and the answers that count as right (`references`, at least one).

    dataset, key: of the sample in its build, for errors and tables.
    """

    dataset: str
    key: str
    kind: Kind
    prediction: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetScore:
    """A row of the table: metric -> value over all of a dataset's answers. notes: how to read these values."""

    dataset: str
    kind: Kind
    num_answers: int
    metrics: Mapping[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """datasets: the table, sorted by name. answers: metric -> value for each answer, in the order of the input."""

    datasets: tuple[DatasetScore, ...]
    answers: tuple[Mapping[str, float], ...]


@dataclass(frozen=True, slots=True)
class _Scored:
    metrics: dict[str, float]
    answers: list[dict[str, float]]
    notes: tuple[str, ...] = ()


def score(answers: Iterable[Answered]) -> Scores:
    """Score answers, one dataset at a time.

    Raises TrainError for an answer without references or a dataset of two kinds, and ConfigError if there are captions
    but not the package that scores them (`missing_packages` checks this before anything is generated).
    """
    answered = tuple(answers)
    of_dataset: dict[str, list[int]] = {}
    for number, answer in enumerate(answered):
        numbers = of_dataset.setdefault(answer.dataset, [])
        numbers.append(number)
        _check(answer, answered[numbers[0]])
    rows: list[DatasetScore] = []
    of_answer: list[Mapping[str, float]] = [{}] * len(answered)
    for dataset, numbers in sorted(of_dataset.items()):
        kind = answered[numbers[0]].kind
        scored = _SCORERS[kind]([answered[number] for number in numbers])
        for number, metrics in zip(numbers, scored.answers, strict=True):
            of_answer[number] = metrics
        rows.append(
            DatasetScore(
                dataset=dataset, kind=kind, num_answers=len(numbers), metrics=scored.metrics, notes=scored.notes
            )
        )
    return Scores(datasets=tuple(rows), answers=tuple(of_answer))


def kind_of(adapter: str) -> Kind:
    """The kind of a dataset's answers, by the adapter its manifest names."""
    return KIND_OF_ADAPTER.get(adapter, "text")


def references_of(metadata: Mapping[str, object], member: int, trained_answer: str) -> tuple[str, ...]:
    """The references for the first answer of conversation number `member` (from 0) of a sample.

    metadata: of a sample of a build (shards/FORMAT.md). Without references in it, the training answer is the only one.
    """
    references = metadata.get("references")
    if isinstance(references, list) and member < len(references) and references[member]:
        return tuple(references[member])
    return (trained_answer,)


def missing_packages(kinds: Iterable[Kind]) -> list[str]:
    """Problems that would stop `score`, to report before hours of generation."""
    problem = missing_package() if "caption" in set(kinds) else None
    return [problem] if problem else []


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if the normalised prediction is one of the normalised references, else 0.

    Texts that normalise to nothing ("A", "?") are compared in lower case, without leading and trailing whitespace.
    """
    return float(_comparable(prediction) in {_comparable(reference) for reference in references})


def direct_answer(prediction: str) -> str:
    """The choice within "The answer is <choice>. Because <reasons>", the form of A-OKVQA here; else the whole text."""
    match = _REASONED.fullmatch(prediction)
    return match[1] if match else prediction


def _check(answer: Answered, first: Answered) -> None:
    where = f"{answer.dataset} {answer.key}"
    if not answer.references:
        raise TrainError(f"{where}: got no references to compare the answer with; expected at least one")
    if answer.kind != first.kind:
        raise TrainError(
            f"{where}: its kind is {answer.kind}, but that of {first.key} is {first.kind}; expected the same"
        )


def _comparable(text: str) -> str:
    return normalise(text) or f"\0{text.strip().lower()}"


def _score_vqa(answers: Sequence[Answered]) -> _Scored:
    each = [
        {
            "vqa_accuracy": vqa_accuracy(answer.prediction, answer.references),
            "vqa_accuracy_normalised": vqa_accuracy_normalised(answer.prediction, answer.references),
            "exact_match": exact_match(answer.prediction, answer.references),
        }
        for answer in answers
    ]
    few = sum(len(answer.references) <= ANSWERS_TO_MATCH for answer in answers)
    note = (
        f"{few} of {len(answers)} questions have fewer than {ANSWERS_TO_MATCH + 1} answers: no prediction reaches a "
        "vqa_accuracy of 1 there; for vqa_accuracy_normalised, a match with any of these answers scores 1"
    )
    return _Scored(_means(each), each, (note,) if few else ())


def _score_reasoned(answers: Sequence[Answered]) -> _Scored:
    return _score_vqa([replace(answer, prediction=direct_answer(answer.prediction)) for answer in answers])


def _score_captions(answers: Sequence[Answered]) -> _Scored:
    scores = caption_scores([answer.prediction for answer in answers], [answer.references for answer in answers])
    each = [
        {"cider": cider, **_bleu(bleu)} for cider, bleu in zip(scores.answer_cider, scores.answer_bleu, strict=True)
    ]
    metrics = {"cider": scores.cider, **_bleu(scores.bleu)}
    if len(answers) > 1:
        return _Scored(metrics, each)
    return _Scored(metrics, each, ("CIDEr is 0 for a single caption: it weighs words by how few captions have them",))


def _score_text(answers: Sequence[Answered]) -> _Scored:
    each = [{"exact_match": exact_match(answer.prediction, answer.references)} for answer in answers]
    return _Scored(_means(each), each)


def _bleu(values: Sequence[float]) -> dict[str, float]:
    return {f"bleu_{order}": value for order, value in zip(BLEU_ORDERS, values, strict=True)}


def _means(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(metrics[name] for metrics in each) / len(each) for name in each[0]}


_SCORERS: dict[Kind, Callable[[Sequence[Answered]], _Scored]] = {
    "caption": _score_captions,
    "reasoned": _score_reasoned,
    "text": _score_text,
    "vqa": _score_vqa,
}
