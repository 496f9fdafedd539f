"""VQA accuracy is the official one: tables, normalisation rule by rule, and the score with its quirks."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import oracles_score
from trainer.evaluation.vqa import (
    CONTRACTIONS,
    MARKS,
    NUMBER_WORDS,
    normalise,
    vqa_accuracy,
    vqa_accuracy_normalised,
)


@pytest.mark.parametrize(
    ("given_answer", "compared"),
    [
        ("Yes", "yes"),
        ("  two\nwords\there ", "2 words here"),
        ("yes.", "yes"),
        ("U.S.A.", "usa"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("version 2.a", "version 2a"),
        ("100,978", "100978"),
        ("red/white", "red white"),
        ("yes, no", "yes no"),
        ("t-shirt", "t shirt"),
        ("x-ray - arm", "xray arm"),
        ("1,000 red/white", "1000 redwhite"),
        ("(blue) [and] {green}?!", "blue and green"),
        ("2:50", "2:50"),
        ("girl's", "girl's"),
        ("5$ & 10%", "5$ & 10%"),
        ("the cat and a dog", "cat and dog"),
        ("An owl", "owl"),
        ("The", ""),
        ("none", "0"),
        ("Ten people", "10 people"),
        ("eleven", "eleven"),
        ("someone", "someone"),
        ("dont", "don't"),
        ("don't", "don't"),
        ("wouldntve", "wouldntve"),
        ("wouldnt've", "wouldn't've"),
        ("im here", "im here"),
        ("somebody'd", "somebodyd"),
        ("isnt let's", "isn't let's"),
        (". " * 40, ". . . . . . . ."),
        ("its", "its"),
        ("well", "well"),
        ("4 oclock", "4 o'clock"),
    ],
)
def test_an_answer_is_normalised_as_by_the_official_program(given_answer: str, compared: str) -> None:
    assert normalise(given_answer) == compared


def test_the_tables_are_those_of_the_official_program() -> None:
    assert oracles_score.OFFICIAL_NUMBERS == NUMBER_WORDS
    assert sorted(MARKS) == sorted(oracles_score.OFFICIAL_MARKS)
    reachable = {
        word: whole
        for word, whole in oracles_score.OFFICIAL_CONTRACTIONS.items()
        if word == word.lower() and word != whole  # answers are in lower case, and some entries change nothing
    }
    assert reachable == CONTRACTIONS


def test_500_invented_questions_score_as_by_a_slow_reading_of_the_official_program() -> None:
    random = Random(20151211)
    cases = [invented_question(random) for _ in range(500)]
    scores = [vqa_accuracy(prediction, answers) for prediction, answers in cases]
    for (prediction, answers), got in zip(cases, scores, strict=True):
        assert got == pytest.approx(oracles_score.official_vqa_accuracy(prediction, answers), abs=1e-12), (
            prediction,
            answers,
        )
        for answer in (prediction, *answers):
            assert normalise(answer) == oracles_score.official_form(answer), answer
    assert min(sum(score == 0 for score in scores), sum(0 < score < 1 for score in scores), scores.count(1)) > 50
    texts = [prediction for prediction, _ in cases]
    for hit in (*MARKS, ".", "'", ":", "\n", "\t", "’", "1,000", "3.5", "don't", "dont", "the ", "three"):
        assert any(hit in text for text in texts), f"no case has {hit!r}"
    assert "" in texts
    agreed = [case for case in cases if len(set(case[1])) == 1 and len(case[1]) == 10]
    assert any(vqa_accuracy(*case) != vqa_accuracy_normalised(*case) for case in agreed)
    assert {len(answers) for _, answers in cases} >= {1, 2, 3, 4, 9, 10}


PIECES = (
    *(
        "yes",
        "Yes",
        "no",
        "cat",
        "Two",
        "ten",
        "none",
        "the",
        "a",
        "An",
        "dont",
        "don't",
        "Im",
        "somebody'd",
        "y'allll",
    ),
    *("1,000", "3.5", "3.", "2:50", "U.S.A.", "100,978", "10", "x,y", "girl's", "t-shirt", "“quoted”", "l’eau"),
    *("٣,٤", "été", "İ", "①", "...", "oclock", "'ow's'at", "three", "one/two", "it's"),
)
BETWEEN = (" ", " ", " ", "", "\n", "\t", "\r", "  ", "\u00a0", " . ", *MARKS, ". ", " ?", "- ", "'", ".")


def invented_question(random: Random) -> tuple[str, list[str]]:
    """A prediction and 1 to 10 answers, often variants of each other, now and then all the same."""
    base = invented_answer(random)
    number = 10 if random.random() < 0.7 else random.randint(1, 9)
    if random.random() < 0.2:
        answers = [base] * number
    else:
        other = invented_answer(random)
        share = random.random()
        answers = [variant(random, base) if random.random() < share else other for _ in range(number)]
    return random.choice([base, variant(random, base), variant(random, base), invented_answer(random)]), answers


def invented_answer(random: Random) -> str:
    words = random.choices(PIECES, k=random.choice([0, 1, 1, 1, 2, 2, 3, 4, 9]))
    return "".join(word + random.choice(BETWEEN) for word in words)[: random.choice([100, 100, 100, -1])]


def variant(random: Random, answer: str) -> str:
    """The answer in another case, with a mark, an article or whitespace around it."""
    changes: list[Callable[[str], str]] = [
        str.upper,
        str.title,
        str.strip,
        lambda text: text + random.choice(BETWEEN),
        lambda text: random.choice(BETWEEN) + text,
        lambda text: f"the {text}",
        lambda text: text.replace("'", ""),
        lambda text: text + "." * 40,
    ]
    return random.choice(changes)(answer)


def test_answers_that_all_agree_are_not_normalised_by_the_official_program() -> None:
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0
    assert vqa_accuracy("yes", ["yes"] * 10) == 1
    assert vqa_accuracy("yes\n", [" yes"] * 10) == 1, "whitespace around it is always removed"
    assert vqa_accuracy("Yes", [*["yes"] * 9, "Yes"]) == 1
    assert vqa_accuracy_normalised("Yes", ["yes"] * 10) == 1


@given(st.text(alphabet="aAn the1,.3-/?'\n", max_size=20))
def test_a_normalised_answer_has_no_mark_article_or_double_space(answer: str) -> None:
    normalised = normalise(answer)
    assert normalised == " ".join(word for word in normalised.split() if word not in ("a", "an", "the"))
    assert normalised == normalised.lower()
    assert not set(normalised) & set(",/-?\n")


@pytest.mark.parametrize(("matching", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (7, 1), (10, 1)])
def test_ten_people_give_the_official_soft_score(matching: int, expected: float) -> None:
    answers = ["two"] * matching + ["three"] * (10 - matching)
    assert vqa_accuracy("two" if matching == 10 else "2", answers) == pytest.approx(expected)


@given(st.lists(st.booleans(), min_size=4, max_size=14))
def test_the_soft_score_is_the_mean_over_all_subsets_without_one_person(matches: list[bool]) -> None:
    answers = ["Yes." if match else "no" for match in matches]
    assert vqa_accuracy_normalised("yes", answers) == pytest.approx(oracles_score.soft_score(matches))


def test_with_fewer_than_four_answers_the_official_score_cannot_reach_1() -> None:
    assert vqa_accuracy("dog", ["dog"]) == 0
    assert vqa_accuracy("dog", ["dog", "dog"]) == pytest.approx(1 / 3)
    assert vqa_accuracy("dog", ["dog", "dog", "Dog"]) == pytest.approx(2 / 3)
    assert vqa_accuracy("dog", ["dog", "cow", "cow", "cow"]) == pytest.approx(0.25)


def test_with_fewer_than_four_answers_a_match_with_any_of_them_is_1_in_the_normalised_score() -> None:
    assert vqa_accuracy_normalised("a dog", ["cat", "dog", "cow"]) == 1
    assert vqa_accuracy_normalised("horse", ["cat", "dog", "cow"]) == 0
    assert vqa_accuracy_normalised("dog", ["dog", "cow", "cow", "cow"]) == pytest.approx(0.25)


@given(st.lists(st.sampled_from(["yes", "no", "Yes.", "the no"]), min_size=4, max_size=12))
def test_the_two_scores_differ_only_where_all_answers_agree(answers: list[str]) -> None:
    if len({*answers}) > 1:
        assert vqa_accuracy("Yes", answers) == vqa_accuracy_normalised("Yes", answers)
    else:
        assert vqa_accuracy_normalised("Yes", answers) == float("es" in answers[0])
