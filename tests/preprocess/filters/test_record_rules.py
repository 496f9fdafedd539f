"""Rules over texts and fields: what they keep is what an obvious loop keeps, and no record is lost."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.compiler.ingest import filtered
from preprocess.conversation import Conversation, FieldValue, Image, RecordSource, Reject, Role, Scalar, ToolCall, Turn
from preprocess.filters import language
from preprocess.filters.record_rules import record_check
from preprocess.filters.rules import FieldRule, Filter, Range

BOUND = st.none() | st.integers(-1, 12)
RANGE = st.none() | st.builds(lambda low, high: Range(min=low, max=high), BOUND, BOUND)
TEXT = st.text(alphabet="ab \n\u00a0é漢", max_size=12)
SCALAR = st.sampled_from([0, 1, 2, 3.0, 2.5, True, False, "1", "", "a", float("nan")])
FIELD_RULE = st.builds(
    lambda bounds, some, none, missing: FieldRule(
        min=bounds and bounds.min,
        max=bounds and bounds.max,
        any_of=tuple(some),
        none_of=tuple(none),
        missing=missing,
    ),
    RANGE,
    st.lists(SCALAR, max_size=3),
    st.lists(SCALAR, max_size=3),
    st.sampled_from(["drop", "keep"]),
)


def talk(
    *answers: str, images: int = 0, fields: dict[str, FieldValue] | None = None, number: int = 0, question: str = "Why?"
) -> Conversation:
    """A question for each answer; the images are in the first."""
    turns: list[Turn] = []
    for index, answer in enumerate(answers):
        shown = [Image(name=f"{count}.jpg") for count in range(images if index == 0 else 0)]
        turns += [Turn(role="user", parts=(*shown, question)), Turn(role="assistant", parts=(answer,))]
    source = RecordSource(file="a.json", record=str(number))
    return Conversation(id=str(number), turns=tuple(turns), sources=(source,), fields=fields or {})


TALKS = st.lists(
    st.builds(
        lambda answers, images, fields: talk(*answers, images=images, fields=fields),
        st.lists(TEXT, min_size=1, max_size=3),
        st.integers(0, 3),
        st.dictionaries(st.sampled_from(["rating", "source"]), SCALAR | st.tuples(SCALAR, st.none() | SCALAR)),
    ),
    max_size=6,
)
FILTERS = st.builds(
    Filter,
    answer_chars=RANGE,
    answer_words=RANGE,
    rounds=RANGE,
    images=RANGE,
    fields=st.dictionaries(st.sampled_from(["rating", "source", "other"]), FIELD_RULE, max_size=2),
)


def within(bounds: Range | None, value: float) -> bool:
    if bounds is None:
        return True
    low = float("-inf") if bounds.min is None else bounds.min
    high = float("inf") if bounds.max is None else bounds.max
    return low <= value <= high


def same(one: Scalar, other: Scalar) -> bool:
    """Equal in JSON."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def is_kept(rules: Filter, conversation: Conversation) -> bool:
    """Rule after rule, each from its sentence in the docs."""
    answers = [str(turn.parts[0]) for turn in conversation.turns if turn.role == "assistant"]
    for answer in answers:
        if not within(rules.answer_chars, len(answer)) or not within(rules.answer_words, len(answer.split())):
            return False
    shown = [part for turn in conversation.turns for part in turn.parts if isinstance(part, Image)]
    if not within(rules.rounds, len(answers)) or not within(rules.images, len(shown)):
        return False
    for name, rule in rules.fields.items():
        values = conversation.fields.get(name)
        if not all(fits(rule, value) for value in (values if isinstance(values, tuple) else [values])):
            return False
    return True


def fits(rule: FieldRule, value: Scalar | None) -> bool:
    if value is None:
        return rule.missing == "keep"
    bounds = None if rule.min is None and rule.max is None else Range(min=rule.min, max=rule.max)
    if bounds is not None and (isinstance(value, bool | str) or not within(bounds, value)):
        return False
    if rule.any_of and not any(same(value, one) for one in rule.any_of):
        return False
    return not any(same(value, one) for one in rule.none_of)


@given(FILTERS, TALKS)
def test_what_rules_keep_is_what_an_obvious_loop_keeps(rules: Filter, talks: list[Conversation]) -> None:
    check = record_check(rules)
    assert [check(one) is None for one in talks] == [is_kept(rules, one) for one in talks]


@given(FILTERS, TALKS)
def test_every_record_is_kept_or_a_reject_whatever_the_rules(rules: Filter, talks: list[Conversation]) -> None:
    earlier = Reject(reason="bad_value", source=RecordSource(file="b.json", record="9"), detail="no")
    stream: list[Conversation | Reject] = [replaced(one, number) for number, one in enumerate(talks)]
    stream.append(earlier)
    dropped: Counter[str] = Counter()
    made = list(filtered(iter(stream), rules, dropped))
    assert sources_of(made) == sources_of(stream)
    refused = [one for one in made if isinstance(one, Reject) and one.reason == "filtered"]
    assert Counter(reject.detail.partition(": ")[0] for reject in refused) == dropped
    assert made[-1] == earlier


def sources_of(items: list[Conversation | Reject]) -> list[RecordSource]:
    return [source for one in items for source in (one.sources if isinstance(one, Conversation) else (one.source,))]


def replaced(conversation: Conversation, number: int) -> Conversation:
    """The same conversation as another record, of two sources."""
    sources = tuple(RecordSource(file="a.json", record=f"{number}.{part}") for part in "ab")
    return Conversation(id=str(number), turns=conversation.turns, sources=sources, fields=conversation.fields)


@pytest.mark.parametrize(
    ("rules", "conversation", "detail"),
    [
        (
            Filter(answer_words=Range(min=2, max=5)),
            talk("Two words.", "One"),
            "answer_words: answer 2 has 1; expected 2 to 5 words",
        ),
        (
            Filter(answer_chars=Range(max=3)),
            talk("four"),
            "answer_chars: answer 1 has 4; expected at most 3 characters",
        ),
        (Filter(rounds=Range(max=1)), talk("a", "b"), "rounds: the record has 2; expected at most 1"),
        (Filter(images=Range(min=1)), talk("a"), "images: the record has 0; expected at least 1"),
        (
            Filter(fields={"relevance": FieldRule(min=3)}),
            talk("a", fields={"relevance": 2}),
            "fields.relevance: got 2; expected at least 3",
        ),
        (
            Filter(fields={"relevance": FieldRule(min=3)}),
            talk("a", fields={"relevance": "5"}),
            'fields.relevance: got "5"; expected a number, at least 3',
        ),
        (
            Filter(fields={"relevance": FieldRule(min=3)}),
            talk("a"),
            "fields.relevance: the record has no text, number, true or false in relevance",
        ),
        (
            Filter(fields={"source": FieldRule(any_of=("coco", 3))}),
            talk("a", fields={"source": "gqa"}),
            'fields.source: got "gqa"; expected one of "coco", 3',
        ),
        (
            Filter(fields={"synthetic": FieldRule(none_of=(True,))}),
            talk("a", fields={"synthetic": True}),
            "fields.synthetic: got true; expected none of true",
        ),
    ],
)
def test_a_reject_names_the_rule_and_what_was_got_and_expected(
    rules: Filter, conversation: Conversation, detail: str
) -> None:
    assert str(record_check(rules)(conversation)) == detail


def test_the_first_rule_that_does_not_hold_drops_a_record_and_is_counted_once() -> None:
    rules = Filter(answer_words=Range(max=1), rounds=Range(max=1), fields={"rating": FieldRule(min=3)})
    talks = [talk("two words", "b", number=0), talk("a", "b", number=1), talk("a", number=2)]
    dropped: Counter[str] = Counter()
    made = list(filtered(iter([*talks, talk("a", fields={"rating": 3}, number=3)]), rules, dropped))
    assert dropped == {"answer_words": 1, "rounds": 1, "fields.rating": 1}
    assert [type(one) for one in made] == [Reject, Reject, Reject, Conversation]


def test_a_kept_record_does_not_depend_on_the_fields_that_rules_read() -> None:
    rules = Filter(fields={"rating": FieldRule(min=3)})
    (kept,) = filtered(iter([talk("a", fields={"rating": 4})]), rules, Counter())
    assert kept == talk("a")


def test_lengths_are_those_of_trained_answers_and_calls_of_tools_are_no_rounds() -> None:
    def turn(role: Role, *parts: str, **more: Any) -> Turn:
        return Turn(role=role, parts=parts, **more)

    conversation = Conversation(
        id="a",
        turns=(
            turn("user", "What is the weather?"),
            turn("assistant", tool_calls=(ToolCall(name="weather", arguments="{}"),)),
            turn("tool", "rain"),
            turn("assistant", "It rains."),
            turn("user", "And a very long answer?"),
            turn("assistant", "word " * 50, trained=False),
        ),
        sources=(RecordSource(file="a.json", record="0"),),
    )
    rules = Filter(answer_words=Range(min=1, max=2), rounds=Range(min=2, max=2))
    assert record_check(rules)(conversation) is None


@pytest.mark.parametrize(
    ("question", "answer", "code"),
    [
        ("What is the man in the picture doing?", "He is riding a wave on a surfboard.", "en"),
        ("Was macht der Mann auf dem Bild?", "Er reitet mit einem Surfbrett auf einer Welle.", "de"),
        ("图中的男人在做什么？", "他正在海浪上冲浪，身边没有其他人，天气很好。", "zh"),
        ("How many?", "2", "und"),
        ("", "", "und"),
    ],
)
def test_the_language_of_a_record_is_that_of_questions_and_answers(question: str, answer: str, code: str) -> None:
    pytest.importorskip(language.PACKAGE)
    conversation = talk(answer, question=question)
    assert record_check(Filter(language=(code,)))(conversation) is None
    assert (
        str(record_check(Filter(language=("fr", "ru")))(conversation))
        == f"language: got {code}; expected one of fr, ru"
    )


def test_a_system_prompt_does_not_change_the_language() -> None:
    pytest.importorskip(language.PACKAGE)
    system = Turn(
        role="system", parts=("You are a helpful assistant. Answer the question with care and in detail. " * 5,)
    )
    question, answer = "Was macht der Mann auf dem Bild?", "Er reitet mit einem Surfbrett auf einer Welle."
    conversation = talk(answer, question=question)
    with_system = Conversation(
        id="a", turns=(system, *conversation.turns), sources=conversation.sources, groups=conversation.groups
    )
    assert record_check(Filter(language=("de",)))(with_system) is None


def test_the_detector_is_part_of_the_key_of_rules_over_languages() -> None:
    pytest.importorskip(language.PACKAGE)
    assert Filter(language=("en",)).record_key()["detector"].startswith(f"{language.PACKAGE} ")
    assert "detector" not in Filter(rounds=Range(max=3)).record_key()


def test_rules_over_images_are_no_part_of_the_key_of_rules_over_records() -> None:
    rules = Filter(rounds=Range(max=3), aspect_ratio=Range(max=3))
    assert rules.record_key() == Filter(rounds=Range(max=3)).record_key()
    assert not Filter(aspect_ratio=Range(max=3)).has_record_rules
