"""Rules over texts and fields of a record: decided while the dataset is read, without opening an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from preprocess.conversation import Conversation, Scalar
from preprocess.filters.language import language_of
from preprocess.filters.rules import Broken, FieldRule, Filter, Range, shown

Check = Callable[[Conversation], Broken | None]


def record_check(rules: Filter) -> Check:
    """The first rule that a conversation breaks, None if all of those over texts and fields hold."""
    checks = [*_checks(rules)]

    def check(conversation: Conversation) -> Broken | None:
        for one in checks:
            broken = one(conversation)
            if broken is not None:
                return broken
        return None

    return check


def _checks(rules: Filter) -> Iterator[Check]:
    """In the order of the keys, except that the language is last: it takes the longest."""
    if rules.answer_chars is not None:
        yield _of_answers("answer_chars", rules.answer_chars, len, "characters")
    if rules.answer_words is not None:
        yield _of_answers("answer_words", rules.answer_words, lambda answer: len(answer.split()), "words")
    if rules.rounds is not None:
        yield _of_record("rounds", rules.rounds, _count_rounds)
    if rules.images is not None:
        yield _of_record("images", rules.images, lambda conversation: len(conversation.images))
    for name, rule in rules.fields.items():
        yield _of_field(name, rule)
    if rules.language:
        yield _of_language(rules.language)


def _of_answers(name: str, bounds: Range, measure: Callable[[str], int], unit: str) -> Check:
    def check(conversation: Conversation) -> Broken | None:
        for number, answer in enumerate(_answers(conversation), start=1):
            size = measure(answer)
            if not bounds.holds(size):
                return Broken(name, f"answer {number} has {size}; expected {bounds} {unit}")
        return None

    return check


def _of_record(name: str, bounds: Range, measure: Callable[[Conversation], int]) -> Check:
    def check(conversation: Conversation) -> Broken | None:
        count = measure(conversation)
        return None if bounds.holds(count) else Broken(name, f"the record has {count}; expected {bounds}")

    return check


def _of_field(name: str, rule: FieldRule) -> Check:
    path = f"fields.{name}"

    def check(conversation: Conversation) -> Broken | None:
        values = conversation.fields.get(name)
        for value in values if isinstance(values, tuple) else (values,):
            if value is not None:
                problem = _field_problem(rule, value)
                if problem:
                    return Broken(path, f"got {shown(value)}; {problem}")
            elif rule.missing == "drop":
                return Broken(path, f"the record has no text, number, true or false in {name}")
        return None

    return check


def _field_problem(rule: FieldRule, value: Scalar) -> str | None:
    if rule.range is not None:
        if isinstance(value, bool | str):
            return f"expected a number, {rule.range}"
        if not rule.range.holds(value):
            return f"expected {rule.range}"
    if rule.any_of and not _is_in(value, rule.any_of):
        return f"expected one of {', '.join(map(shown, rule.any_of))}"
    if _is_in(value, rule.none_of):
        return f"expected none of {', '.join(map(shown, rule.none_of))}"
    return None


def _is_in(value: Scalar, values: Sequence[Scalar]) -> bool:
    """As in JSON: 3 and 3.0 are the same number, true is not a number, and text is neither."""
    return any(value == one and _kind(value) == _kind(one) for one in values)


def _kind(value: Scalar) -> str:
    return type(value).__name__ if isinstance(value, bool | str) else "number"


def _of_language(codes: Sequence[str]) -> Check:
    def check(conversation: Conversation) -> Broken | None:
        found = language_of("\n".join(_spoken(conversation)))
        return None if found in codes else Broken("language", f"got {found}; expected one of {', '.join(codes)}")

    return check


def _answers(conversation: Conversation) -> list[str]:
    """The text of each answer that is trained; one that only calls tools has none."""
    return [
        "".join(part for part in turn.parts if isinstance(part, str))
        for turn in conversation.turns
        if turn.role == "assistant" and turn.trained and turn.parts
    ]


def _count_rounds(conversation: Conversation) -> int:
    """Answers, trained or not; one for each question."""
    return sum(turn.role == "assistant" and not turn.tool_calls for turn in conversation.turns)


def _spoken(conversation: Conversation) -> Iterator[str]:
    """Questions and answers; a system prompt is often in another language."""
    for turn in conversation.turns:
        if turn.role in ("user", "assistant"):
            yield from (part for part in turn.parts if isinstance(part, str))
