"""Conversations between adapter, spool and template: nothing of them is lost, and messages have Hugging Face's keys."""

from __future__ import annotations

import re

import pytest

from preprocess.conversation import NOTES, Conversation, Image, RecordSource, ToolCall, Turn, to_messages, to_tools
from preprocess.conversation_lines import decode, encode
from tests.support.paths import ROOT

SOURCES = (RecordSource(file="a.json", record="1"),)
WEATHER = '{"name":"weather","parameters":{"type":"object","required":["place"]}}'
AGENT = Conversation(
    id="a/1",
    turns=(
        Turn(role="system", parts=("Be brief.",)),
        Turn(role="user", parts=("Look: ", Image(name="sky.jpg", store=1), "rain?")),
        Turn(
            role="assistant",
            parts=(),
            trained=False,
            reasoning="I need data.",
            tool_calls=(ToolCall(name="weather", arguments='{"place": "Rome"}', id="call_1"),),
        ),
        Turn(role="tool", parts=("Dry.",), tool_name="weather", call_id="call_1"),
        Turn(role="assistant", parts=("No.",)),
    ),
    sources=SOURCES,
    groups=("sky.jpg",),
    official_split="val",
    references=("No.", "Dry."),
    notes=("image_placed_first",),
    tools=(WEATHER,),
    fields={"rating": 4, "source": "sky"},
)


def test_messages_carry_flags_reasoning_calls_and_results_in_the_keys_of_chat_templates() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Rome"}}, "id": "call_1"}
    assert to_messages(AGENT) == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": "rain?"}],
        },
        {
            "role": "assistant",
            "content": "",
            "trained": False,
            "reasoning_content": "I need data.",
            "tool_calls": [call],
        },
        {"role": "tool", "content": "Dry.", "name": "weather", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "No."},
    ]
    assert to_tools(AGENT) == [{"name": "weather", "parameters": {"type": "object", "required": ["place"]}}]


def test_a_plain_conversation_has_no_other_keys_than_role_and_content() -> None:
    plain = Conversation(
        id="1", turns=(Turn(role="user", parts=("a",)), Turn(role="assistant", parts=("b",))), sources=SOURCES
    )
    assert to_messages(plain) == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert to_tools(plain) == []


@pytest.mark.parametrize(
    "conversation", [AGENT, Conversation(id="1", turns=(), sources=SOURCES)], ids=["everything", "nothing"]
)
def test_encoding_loses_nothing(conversation: Conversation) -> None:
    assert decode(encode(conversation)) == conversation


def test_text_that_is_not_unicode_cannot_be_encoded() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        encode(Conversation(id="1", turns=(Turn(role="user", parts=("\ud800",)),), sources=SOURCES))


def test_every_note_is_explained() -> None:
    sources = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "preprocess").rglob("*.py"))]
    written = {name for source in sources for name in re.findall(r'\bnotes(?:\.append\(|\[|=\()"(\w+)"', source)}
    assert {"rounds_cut", "dangling_question", "frames_cut"} <= written <= NOTES.keys()
