"""The turns of chat: system prompts, their order, flags on answers, tools, and the tags of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preprocess.conversation import Conversation, Reject, to_tools
from tests.support.chat_records import MESSAGES, ONE, ROUND, SHAREGPT, SHOWN, TWO, read_chat, spoken, why


def test_answers_within_a_prompt_are_context(tmp_path: Path) -> None:
    (item,) = read_chat(tmp_path, {"prompt": [*MESSAGES, MESSAGES[0]], "completion": MESSAGES[1:]})
    assert isinstance(item, Conversation)
    assert [turn.trained for turn in item.turns if turn.role == "assistant"] == [False, True]


@pytest.mark.parametrize("key", ["system", "system_prompt", "system_message"])
def test_a_system_prompt_in_a_key_of_its_own_leads_the_conversation(tmp_path: Path, key: str) -> None:
    (item,) = read_chat(tmp_path, {"messages": MESSAGES, key: "Be brief."})
    assert spoken(item) == [("system", "Be brief."), *ROUND]


def test_two_system_prompts_are_refused_unless_they_are_the_same(tmp_path: Path) -> None:
    system = [{"role": "system", "content": "Be brief."}]
    same, other, keys = read_chat(
        tmp_path,
        {"messages": system + MESSAGES, "system": "Be brief."},
        {"messages": system + MESSAGES, "system": "Be long."},
        {"messages": MESSAGES, "system": "Be brief.", "system_prompt": "Be brief."},
    )
    assert spoken(same)[0] == ("system", "Be brief.")
    assert [why(other), why(keys)] == ["bad_value", "bad_value"]


def test_questions_in_a_row_are_joined_and_answers_in_a_row_refused(tmp_path: Path) -> None:
    ask, reply = MESSAGES
    joined, refused = read_chat(
        tmp_path, {"messages": [ask, {"role": "user", "content": "Now."}, reply]}, {"messages": [ask, reply, reply]}
    )
    assert spoken(joined) == [("user", "What?\nNow."), ("assistant", "That.")]
    assert isinstance(joined, Conversation)
    assert joined.notes == ("questions_joined",)
    assert why(refused) == "role_order"


@pytest.mark.parametrize("system_first", [True, False])
def test_answers_before_the_first_question_are_left_out_before_and_after_the_system_prompt(
    tmp_path: Path, system_first: bool
) -> None:
    lead = [{"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Hello!"}]
    (item,) = read_chat(tmp_path, {"messages": [*(lead if system_first else lead[::-1]), *MESSAGES]})
    assert isinstance(item, Conversation)
    assert spoken(item) == [("system", "Be brief."), *ROUND]
    assert item.notes == ("leading_answer",)


@pytest.mark.parametrize("flag", [{"loss": False}, {"weight": 0}, {"train": False}, {"loss_mask": 0}, {"loss": 0.0}])
def test_an_answer_with_a_flag_against_it_is_context(tmp_path: Path, flag: dict[str, Any]) -> None:
    (item,) = read_chat(tmp_path, {"messages": [MESSAGES[0], {**MESSAGES[1], **flag}, *MESSAGES]})
    assert isinstance(item, Conversation)
    assert [turn.trained for turn in item.turns] == [True, False, True, True]


@pytest.mark.parametrize(
    ("ask", "reply"),
    [
        ({}, {"weight": 0.5}),
        ({}, {"loss": "yes"}),
        ({}, {"loss_mask": [1, 0]}),
        ({}, {"loss": True, "weight": 0}),
        ({"loss": True}, {}),
    ],
)
def test_a_flag_that_cannot_be_kept_is_refused(tmp_path: Path, ask: dict[str, Any], reply: dict[str, Any]) -> None:
    (item,) = read_chat(tmp_path, {"messages": [{**MESSAGES[0], **ask}, {**MESSAGES[1], **reply}]})
    assert why(item) == "bad_value"


CALL = {"name": "weather", "arguments": {"place": "Rome"}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


@pytest.mark.parametrize(
    "record",
    [
        {
            "tools": TOOLS,
            "messages": [
                MESSAGES[0],
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": CALL, "id": "c"}],
                },
                {"role": "tool", "content": "Dry.", "name": "weather", "tool_call_id": "c"},
                MESSAGES[1],
            ],
        },
        {
            "tools": json.dumps(TOOLS),
            "conversations": [
                SHAREGPT[0],
                {"from": "function_call", "value": json.dumps({**CALL, "arguments": json.dumps(CALL["arguments"])})},
                {"from": "observation", "value": "Dry."},
                SHAREGPT[1],
            ],
        },
        {
            "functions": TOOLS,
            "messages": [
                MESSAGES[0],
                {"role": "assistant", "content": "", "function_call": CALL},
                {"role": "function", "content": "Dry."},
                MESSAGES[1],
            ],
        },
    ],
)
def test_tool_calls_results_and_definitions_are_carried_in_every_spelling(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    (item,) = read_chat(tmp_path, record)
    assert isinstance(item, Conversation), item
    assert [turn.role for turn in item.turns] == ["user", "assistant", "tool", "assistant"]
    (call,) = item.turns[1].tool_calls
    assert (call.name, json.loads(call.arguments)) == ("weather", {"place": "Rome"})
    assert item.turns[1].parts == ()
    assert item.turns[2].parts == ("Dry.",)
    assert to_tools(item) == TOOLS


@pytest.mark.parametrize(
    "calls", ["no JSON", 3, [{"name": ""}], [{"name": "a", "arguments": "no JSON"}], [{"name": "a", "arguments": [1]}]]
)
def test_a_tool_call_that_cannot_be_read_is_refused(tmp_path: Path, calls: Any) -> None:
    turn = {"role": "assistant", "content": "", "tool_calls": calls}
    (item,) = read_chat(tmp_path, {"messages": [MESSAGES[0], turn, *MESSAGES]})
    assert why(item) in ("bad_value", "wrong_type")


def test_reasoning_is_carried_and_think_tags_stay_text(tmp_path: Path) -> None:
    reply = {"role": "assistant", "content": "<think>Hm.</think>That.", "reasoning_content": "Hm, hm."}
    (item,) = read_chat(tmp_path, {"messages": [MESSAGES[0], reply]})
    assert isinstance(item, Conversation)
    assert (item.turns[1].reasoning, item.turns[1].parts) == ("Hm, hm.", ("<think>Hm.</think>That.",))


def test_a_result_may_show_an_image_and_a_last_one_that_nobody_answers_is_left_out(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    seen = {"role": "tool", "content": [{"type": "image", "path": "1.jpg"}]}
    shown, cut = read_chat(
        tmp_path,
        {"messages": [MESSAGES[0], call, seen, MESSAGES[1]]},
        {"messages": [*MESSAGES, MESSAGES[0], call, seen]},
    )
    assert spoken(shown)[2] == ("tool", (ONE,))
    assert isinstance(cut, Conversation)
    assert (len(cut.turns), cut.notes) == (4, ("dangling_question",))


TAGS: list[tuple[str, str, list[str], tuple[Any, ...] | str]] = [
    ("<image-1> or <image-2>?", "That.", ["1.jpg", "2.jpg"], (ONE, "or ", TWO, "?")),
    ("<image 2> or <image 1>?", "That.", ["1.jpg", "2.jpg"], (TWO, "or ", ONE, "?")),
    ("<image_0> or <image_1>?", "That.", ["1.jpg", "2.jpg"], (ONE, "or ", TWO, "?")),
    ("<|image_1|>\nWhat?", "That.", ["1.jpg"], (ONE, "What?")),
    ("<image1> or <image1>?", "That.", ["1.jpg"], "image_count"),
    ("<image_1> or <image>?", "That.", ["1.jpg", "2.jpg"], "image_count"),
    ("<image_1>?", "That.", [], "image_count"),
    ("<image>?", "That.", [], "image_count"),
    ("<Image>?", "That.", ["1.jpg"], "unread_media"),
    ("<video>?", "That.", ["1.jpg"], "unread_media"),
    ("<audio>?", "That.", [], "unread_media"),
    ("What?", "<video>", [], "unread_media"),
    ("What?", "<image>", ["1.jpg"], "image_in_answer"),
    ("What?", "See <image_1>.", ["1.jpg"], "image_in_answer"),
    ("<img src='a.jpg'> in <i>HTML</i>?", "<html>", [], ("<img src='a.jpg'> in <i>HTML</i>?",)),
]


@pytest.mark.parametrize(("question", "answer", "images", "expected"), TAGS)
def test_a_tag_becomes_its_image_or_the_record_is_refused(
    tmp_path: Path, question: str, answer: str, images: list[str], expected: tuple[Any, ...] | str
) -> None:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    (item,) = read_chat(tmp_path, {"messages": turns, "images": images})
    if isinstance(expected, str):
        assert why(item) == expected
    else:
        assert isinstance(item, Conversation), item
        assert item.turns[0].parts == expected


def test_another_marker_is_read_when_the_dataset_says_so(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "<ImageHere>\nWhat?"}, MESSAGES[1]]
    record = {"messages": turns, "images": ["1.jpg"]}
    assert spoken(read_chat(tmp_path, record, marker="<ImageHere>")[0]) == SHOWN
    (refused,) = read_chat(tmp_path, record)
    assert isinstance(refused, Reject)
    assert "marker" in refused.detail


def test_a_message_may_name_its_own_images(tmp_path: Path) -> None:
    first = {**MESSAGES[0], "images": ["1.jpg"]}
    second = {"role": "user", "content": "And <image>?", "images": ["2.jpg"]}
    answer = {**MESSAGES[1], "images": ["2.jpg"]}
    shown, refused = read_chat(
        tmp_path, {"messages": [first, MESSAGES[1], second, MESSAGES[1]]}, {"messages": [first, answer]}
    )
    assert spoken(shown)[::2] == [("user", (ONE, "What?")), ("user", ("And ", TWO, "?"))]
    assert why(refused) == "image_in_answer"
