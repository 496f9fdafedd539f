"""Scores are the published ones: exact match, CIDEr-D and BLEU; every dataset gets the metrics of its kind."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst.errors import ConfigError
from tests.support import oracles_score
from tests.support.paths import ROOT
from trainer.errors import TrainError
from trainer.evaluation.captions import caption_scores, caption_tokens
from trainer.evaluation.metrics import (
    KIND_OF_ADAPTER,
    METRICS,
    Answered,
    Kind,
    direct_answer,
    exact_match,
    kind_of,
    missing_packages,
    references_of,
    score,
)

WORD = st.sampled_from(["a", "cat", "dog", "sits", "on", "red", "mats"])
CAPTION = st.lists(WORD, min_size=4, max_size=9)
REFERENCES = st.lists(st.lists(WORD, min_size=1, max_size=9), min_size=1, max_size=3)


@pytest.fixture
def captions() -> None:
    """The caption metrics' package is an extra."""
    pytest.importorskip("pycocoevalcap.cider.cider", reason="the extra `eval` is not installed")


def test_exact_match_compares_normalised_texts_and_letters_that_are_articles() -> None:
    assert exact_match("The two dogs.", ["three dogs", "2 dogs"]) == 1
    assert exact_match("two dog", ["2 dogs"]) == 0
    assert exact_match(" a", ["A"]) == 1
    assert exact_match("a", ["the"]) == 0
    assert exact_match("", ["the"]) == 0


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("The answer is skateboard. Because he rides it. Because it has wheels.", "skateboard"),
        ("the answer is: a U.S. flag. Because\nit has stripes", "a U.S. flag"),
        ("The answer is umbrella.", "umbrella"),
        ("The answer is umbrella", "umbrella"),
        ("umbrella", "umbrella"),
        ("I think the answer is umbrella.", "I think the answer is umbrella."),
        ("The answer is", "The answer is"),
    ],
)
def test_a_reasoned_answer_is_scored_by_its_choice(said: str, answer: str) -> None:
    assert direct_answer(said) == answer


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man, a dog.", ["a", "man", "a", "dog"]),
        ("The dog's ball isn't red!", ["the", "dog", "'s", "ball", "is", "n't", "red"]),
        ("They’ve 3.5 t-shirts (new)", ["they", "'ve", "3.5", "t-shirts", "new"]),
        ('a "stop" sign -- at 2,000 m; go...', ["a", "stop", "sign", "at", "2,000", "m", "go"]),
        ("n't 's", ["n't", "s"]),
        ("I'd've", ["i", "'d", "'ve"]),
        ("Ein Mädchen läuft", ["ein", "mädchen", "läuft"]),
        ("?! ...", []),
    ],
)
def test_captions_are_cut_into_words_as_documented(caption: str, tokens: list[str]) -> None:
    assert caption_tokens(caption) == tokens


@pytest.mark.usefixtures("captions")
def test_cider_has_the_values_that_can_be_worked_out_by_hand() -> None:
    # Each word is in one of two images: all weights are log 2 and leave the cosines.
    same = caption_scores(["red cats sleep here", "the dog barks loudly"], [["Red cats sleep here."], ["a b c d"]])
    assert same.answer_cider == pytest.approx((10, 0))
    assert same.cider == pytest.approx(5)
    short = caption_scores(["red cats sleep", "x"], [["red cats sleep here"], ["a b c d"]])
    cosines = [3 / math.sqrt(3 * 4), 2 / math.sqrt(2 * 3), 1 / math.sqrt(1 * 2), 0]
    assert short.answer_cider[0] == pytest.approx(10 * sum(cosines) / 4 * math.exp(-1 / 72))
    two_words = caption_scores(["a cat", "the dog"], [["a cat"], ["the dog"]])
    assert two_words.cider == pytest.approx(5)  # there are no sequences of 3 and 4 words to agree on


@pytest.mark.usefixtures("captions")
def test_bleu_has_the_values_that_can_be_worked_out_by_hand() -> None:
    references = [["the cat is on the mat", "there is a cat on the mat"]]
    clipped = caption_scores(["the the the the the the the"], references)
    assert clipped.bleu[0] == pytest.approx(2 / 7)
    short = caption_scores(["the cat"], [["the cat is on"]])
    assert short.bleu[:2] == pytest.approx((math.exp(1 - 4 / 2),) * 2)


@pytest.mark.usefixtures("captions")
@given(st.lists(st.tuples(CAPTION, REFERENCES), min_size=1, max_size=5))
def test_cider_and_bleu_agree_with_their_slow_twins(images: list[tuple[list[str], list[list[str]]]]) -> None:
    candidates = [candidate for candidate, _ in images]
    references = [own for _, own in images]
    scores = caption_scores(
        [" ".join(words) for words in candidates], [[" ".join(r) for r in own] for own in references]
    )
    assert scores.answer_cider == pytest.approx(oracles_score.cider_d(candidates, references), abs=1e-9)
    assert scores.cider == pytest.approx(sum(scores.answer_cider) / len(images))
    for order in (1, 2, 3, 4):  # where nothing matches, the package has 1e-15 under the root instead of 0
        assert scores.bleu[order - 1] == pytest.approx(oracles_score.bleu(candidates, references, order), abs=3e-4)


@pytest.mark.usefixtures("captions")
def test_captions_without_a_word_score_nothing() -> None:
    scores = caption_scores(["", "..."], [["a cat", "!"], ["a dog"]])
    assert scores.answer_cider == (0, 0)
    assert scores.bleu == pytest.approx((0, 0, 0, 0), abs=1e-3)
    assert caption_scores(["a cat", "dog"], [["?"], ["!"]]).cider == 0


@pytest.mark.usefixtures("captions")
def test_every_dataset_has_its_own_row_and_every_answer_its_scores() -> None:
    answers = [
        _answered("zoo", "a", "caption", "a cat on a mat", "a cat sits on a mat"),
        _answered("vqa", "b", "vqa", "Two.", *["2"] * 3, *["3"] * 7),
        _answered("zoo", "c", "caption", "a dog", "two dogs"),
        _answered("ocr", "d", "text", "the book", "Book."),
        _answered("aok", "e", "reasoned", "The answer is ball. Because it is round.", *["ball"] * 10),
        _answered("vqa", "f", "vqa", "no", *["yes"] * 10),
    ]
    scores = score(answers)
    rows = {row.dataset: row for row in scores.datasets}
    assert list(rows) == ["aok", "ocr", "vqa", "zoo"]
    assert rows["vqa"].num_answers == 2
    assert rows["vqa"].metrics == pytest.approx(
        {"vqa_accuracy": 0.45, "vqa_accuracy_normalised": 0.45, "exact_match": 0.5}
    )
    assert rows["aok"].metrics == {"vqa_accuracy": 1, "vqa_accuracy_normalised": 1, "exact_match": 1}
    assert rows["ocr"].metrics == {"exact_match": 1}
    assert list(rows["zoo"].metrics) == ["cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4"]
    assert [list(metrics) for metrics in scores.answers][:2] == [list(rows["zoo"].metrics), list(rows["vqa"].metrics)]
    alone = caption_scores(
        [answers[0].prediction, answers[2].prediction], [answers[0].references, answers[2].references]
    )
    assert scores.answers[2]["cider"] == alone.answer_cider[1]
    assert scores.answers[5] == {"vqa_accuracy": 0, "vqa_accuracy_normalised": 0, "exact_match": 0}


@pytest.mark.usefixtures("captions")
def test_what_a_reader_has_to_know_of_a_row_is_noted() -> None:
    single = score([_answered("zoo", "a", "caption", "a cat", "a cat")]).datasets[0]
    assert "single caption" in single.notes[0]
    few = score([_answered("q", "a", "vqa", "x", "x"), _answered("q", "b", "vqa", "x", *"xxxx")]).datasets[0]
    assert few.notes == (
        "1 of 2 questions have fewer than 4 answers: no prediction reaches a vqa_accuracy of 1 there; for "
        "vqa_accuracy_normalised, a match with any of these answers scores 1",
    )
    assert few.metrics == {"vqa_accuracy": 0.5, "vqa_accuracy_normalised": 1, "exact_match": 1}


def test_every_metric_of_a_report_is_defined() -> None:
    answers = [_answered(kind, "k", kind, "x", *"xxxx") for kind in ("vqa", "reasoned", "text")]
    used = {name for row in score(answers).datasets for name in row.metrics}
    assert used | {"cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4"} == {*METRICS}
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    table = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    for name in METRICS:
        assert any(f"`{name}`" in cell for cell in table), f"docs/evaluation.md does not define {name}"
    for adapter in KIND_OF_ADAPTER:
        assert any(f"`{adapter}`" in cell for cell in table), f"docs/evaluation.md does not say how {adapter} is scored"


def test_nothing_to_score_is_an_empty_table() -> None:
    assert score([]).datasets == ()


def test_an_answer_that_cannot_be_scored_is_named() -> None:
    with pytest.raises(TrainError, match=r"vqa k7: got no references .* expected at least one"):
        score([_answered("vqa", "k7", "vqa", "yes")])
    with pytest.raises(TrainError, match="vqa k2: its kind is text, but that of k1 is vqa"):
        score([_answered("vqa", "k1", "vqa", "yes", "yes"), _answered("vqa", "k2", "text", "yes", "yes")])


def test_a_missing_package_is_reported_before_and_instead_of_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pycocoevalcap.cider.cider", "pycocoevalcap.bleu.bleu"):
        monkeypatch.setitem(sys.modules, module, None)
    assert missing_packages(["vqa", "text"]) == []
    [problem] = missing_packages(["caption", "vqa"])
    assert "pip install" in problem
    with pytest.raises(ConfigError, match="pycocoevalcap, which is not installed"):
        score([_answered("zoo", "a", "caption", "a cat", "a cat")])


def test_the_adapter_of_a_dataset_says_its_kind() -> None:
    assert {kind_of(adapter) for adapter in KIND_OF_ADAPTER} == {"vqa", "reasoned", "caption"}
    assert kind_of("chat") == kind_of("llava") == kind_of("ocr_vqa") == "text"


def test_references_come_from_the_metadata_or_are_the_trained_answer() -> None:
    metadata = {"id": "1", "references": [["2", "two"], []]}
    assert references_of(metadata, 0, "2") == ("2", "two")
    assert references_of(metadata, 1, "a dog") == ("a dog",)
    assert references_of(metadata, 2, "a cow") == ("a cow",)
    assert references_of({"id": "1"}, 0, "a cat") == ("a cat",)


def _answered(dataset: str, key: str, kind: Kind, prediction: str, *references: str) -> Answered:
    return Answered(dataset=dataset, key=key, kind=kind, prediction=prediction, references=references)
