"""Score generated answers: VQA accuracy, exact match, CIDEr and BLEU, a row of numbers for every dataset.

Rule: which metrics a dataset gets depends on what its answers are (its kind), never on the answers given. A build's
manifest names each dataset's adapter, and KIND_OF_ADAPTER says the kind of those; of any other, your own chat files
among them, only exact match is known to make sense.

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
from trainer.evaluation.vqa import normalise

Kind = Literal["vqa", "reasoned", "caption", "text"]

# vqa: a few words that several people gave; reasoned: such an answer inside "The answer is ... Because ...";
# caption: sentences about a picture; text: all else.
KIND_OF_ADAPTER: dict[str, Kind] = {
    "aokvqa": "reasoned",
    "coco_caption": "caption",
    "minigpt4": "caption",
    "vqa_v2": "vqa",
}
_REASONED = re.compile(r"\s*the answer is:?\s+(.+?)(?:\.\s+because\b.*|\.?\s*)", re.IGNORECASE | re.DOTALL)
_ENOUGH_TO_VOTE = 4  # with fewer answers, three others never agree and no answer could be fully right


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a model said (`prediction`), and what counts as right (`references`, at least one).

    dataset, key: of the sample in its build; errors and tables name them.
    """

    dataset: str
    key: str
    kind: Kind
    prediction: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetScore:
    """A row of the table: metric -> value over all of a dataset's answers. notes: what a reader has to know of them."""

    dataset: str
    kind: Kind
    num_answers: int
    metrics: Mapping[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """datasets: the table, sorted by name. answers: metric -> value of each answer, in the order they were given in."""

    datasets: tuple[DatasetScore, ...]
    answers: tuple[Mapping[str, float], ...]


@dataclass(frozen=True, slots=True)
class _Scored:
    metrics: dict[str, float]
    answers: list[dict[str, float]]
    notes: tuple[str, ...] = ()


def score(answers: Iterable[Answered]) -> Scores:
    """Score answers, each dataset by itself.

    Raises TrainError for an answer without references or a dataset of two kinds, ConfigError if captions are to be
    scored and the package for it is missing (`missing_packages` tells before anything is generated).
    """
    given = tuple(answers)
    of_dataset: dict[str, list[int]] = {}
    for number, answer in enumerate(given):
        numbers = of_dataset.setdefault(answer.dataset, [])
        numbers.append(number)
        _check(answer, given[numbers[0]])
    rows: list[DatasetScore] = []
    of_answer: list[Mapping[str, float]] = [{}] * len(given)
    for dataset, numbers in sorted(of_dataset.items()):
        kind = given[numbers[0]].kind
        scored = _SCORERS[kind]([given[number] for number in numbers])
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
    """What counts as right for the first answer of a sample's conversation number `member` (from 0).

    metadata: of a sample of a build (shards/FORMAT.md). Where it has no references, the answer that was to be learnt.
    """
    references = metadata.get("references")
    if isinstance(references, list) and member < len(references) and references[member]:
        return tuple(references[member])
    return (trained_answer,)


def missing_packages(kinds: Iterable[Kind]) -> list[str]:
    """Problems that would stop `score`, to be told before hours of generating."""
    problem = missing_package() if "caption" in set(kinds) else None
    return [problem] if problem else []


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The VQA challenge's soft score: min(people who gave the answer / 3, 1), averaged over all ways to leave one out.

    With ten answers: 0.3, 0.6, 0.9 and 1 for an answer that 1, 2, 3, and more people gave. The same is done with 4 to 9
    answers and with more than 10. With 1 to 3 answers nobody could reach 1, so agreeing with any of them scores 1.
    Antol et al. 2015, https://visualqa.org/evaluation.html; both sides are normalised (trainer/evaluation/vqa.py).
    """
    wanted = normalise(prediction)
    matching = sum(normalise(answer) == wanted for answer in answers)
    if len(answers) < _ENOUGH_TO_VOTE:
        return float(matching > 0)
    left_out_matches = matching * min((matching - 1) / 3, 1.0)
    left_out_differs = (len(answers) - matching) * min(matching / 3, 1.0)
    return (left_out_matches + left_out_differs) / len(answers)


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if the normalised prediction is one of the normalised references, else 0.

    Texts that normalise to nothing ("A", "?") are compared as they are, but for case and space around them.
    """
    return float(_comparable(prediction) in {_comparable(reference) for reference in references})


def direct_answer(prediction: str) -> str:
    """The choice within "The answer is <choice>. Because <reasons>", as A-OKVQA is trained; any other text as it is."""
    found = _REASONED.fullmatch(prediction)
    return found[1] if found else prediction


def _check(answer: Answered, first: Answered) -> None:
    place = f"{answer.dataset} {answer.key}"
    if not answer.references:
        raise TrainError(f"{place}: there is nothing to compare the answer with; wanted at least one reference")
    if answer.kind != first.kind:
        raise TrainError(
            f"{place}: its kind is {answer.kind}, but that of {first.key} is {first.kind}; wanted one kind in a dataset"
        )


def _comparable(text: str) -> str:
    return normalise(text) or f"\0{text.strip().lower()}"


def _score_vqa(answers: Sequence[Answered]) -> _Scored:
    each = [
        {
            "vqa_accuracy": vqa_accuracy(answer.prediction, answer.references),
            "exact_match": exact_match(answer.prediction, answer.references),
        }
        for answer in answers
    ]
    few = sum(len(answer.references) < _ENOUGH_TO_VOTE for answer in answers)
    note = (
        f"{few} of {len(answers)} questions have fewer than {_ENOUGH_TO_VOTE} answers; for them any of these scores 1"
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
