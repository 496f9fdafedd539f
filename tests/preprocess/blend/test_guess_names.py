"""Proposals for `fields` and `roles`: what names and values tell, and what only a person can."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.blend.guess_names import Names, guess_images, guess_names, nested_turns


def turns(role: str, content: str, *names: str) -> list[dict[str, str]]:
    return [{role: name, content: f"Words {number}."} for number, name in enumerate(names)]


@pytest.mark.parametrize(
    ("record", "fields", "roles"),
    [
        (
            {"dialog": turns("who", "says", "patient", "doctor"), "scan": "a/1.png"},
            {"dialog": "messages", "who": "role", "says": "content", "scan": "image"},
            {"patient": "user", "doctor": "assistant"},
        ),
        ({"messages": turns("role", "message", "user", "assistant")}, {"message": "content"}, {}),
        ({"turns": '[{"role": "user", "content": "Hi"}]'}, {"turns": "messages"}, {}),
        ({"chat": turns("von", "content", "human", "bot")}, {"chat": "messages", "von": "role"}, {}),
        ({"log": turns("role", "content", "Q", "A")}, {"log": "messages"}, {"Q": "user", "A": "assistant"}),
        ({"qa": [{"q": "What?", "a": "That."}]}, {"qa": "messages", "q": "question", "a": "answer"}, {}),
        ({"question": "What?", "response": "That."}, {"response": "answer"}, {}),
        ({"query": "What?", "bot": "That.", "page": "x"}, {"query": "question", "bot": "answer"}, {}),
        ({"instruction": "Do.", "input": "it", "response": "Done."}, {"response": "output"}, {}),
        ({"Frage": "Was?", "Antwort": "Das."}, {"Frage": "question", "Antwort": "answer"}, {}),
        ({"问题": "?", "答案": "!", "图": ["a.jpg"]}, {"问题": "question", "答案": "answer", "图": "images"}, {}),
        ({"description": "A cup.", "jpeg_file": "1.JPG"}, {"description": "caption", "jpeg_file": "image"}, {}),
        (
            {"q": "What?", "a": "That.", "before": "1.jpg", "after": "https://x.org/2.png?w=3"},
            {"q": "question", "a": "answer", "before": "image_1", "after": "image_2"},
            {},
        ),
        (
            {"messages": [{"role": "user", "content": "What?", "pic": "1.jpg"}]},
            {"pic": "image"},
            {},
        ),
    ],
)
def test_names_are_proposed_for_known_words_and_for_values_of_one_kind(
    record: dict[str, Any], fields: dict[str, str], roles: dict[str, str]
) -> None:
    assert guess_names([record]) == Names(fields=fields, roles=roles)  # type: ignore[arg-type]


def test_who_speaks_is_a_question_where_no_word_tells_it() -> None:
    found = guess_names([{"turns": turns("who", "says", "Kim", "Lee")}])
    assert found is not None
    assert (found.roles, found.unknown_roles) == ({}, ("Kim", "Lee"))
    mixed = guess_names([{"turns": turns("who", "says", "A", "agent")}])
    assert mixed is not None
    assert (mixed.roles, mixed.unknown_roles) == ({"agent": "assistant"}, ("A",))


def test_which_image_of_a_turn_is_meant_is_a_question() -> None:
    turn = {"role": "user", "content": "What?", "left": "1.jpg", "right": "2.jpg"}
    found = guess_images([{"messages": [turn]}])
    assert found == Names(questions=("not guessed: which of left, right is the image of a turn; map one in `fields`",))


@pytest.mark.parametrize(
    "record",
    [
        {"images": [{"id": 1}], "annotations": [{"id": 2}]},
        {"price": 3, "size": "large"},
        {"words": ["a", "b"]},
        {"data": {"messages": turns("role", "content", "user")}},
        {"turns": [{"a": "x", "b": "y", "c": "z"}]},
        "text",
    ],
)
def test_what_does_not_look_like_a_conversation_gets_no_proposal(record: Any) -> None:
    assert guess_names([record]) is None


def test_turns_below_another_key_are_found_for_the_reason_why_they_are_not_read() -> None:
    assert nested_turns([{"id": 1, "data": {"more": {"log": turns("who", "says", "A", "B")}}}]) == "data.more.log"
    assert nested_turns([{"log": turns("who", "says", "A", "B")}]) is None
    assert nested_turns([3]) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "user", "a.jpg", "[1", "words", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "log", "q", "a", "é"]), inner),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=3))
def test_any_json_gets_a_proposal_or_none(records: list[Any]) -> None:
    guess_images(records)
    nested_turns(records)
    found = guess_names(records)
    assert found is None or len({*found.fields}) == len(found.fields)
