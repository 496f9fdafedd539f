"""Bodies of chat completions become records; whatever is wrong with them is an error that names its field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.chat_requests import chat_body, encoded, image_part, text_part
from trainer.errors import RequestError
from trainer.serving.chat_request import ChatRequest, Defaults, parse_chat
from trainer.serving.limits import Limits
from trainer.serving.parameters import NEUTRAL, WITHOUT_EFFECT

DEEP = json.loads("[" * 300 + "]" * 300)
"""Deeper than orjson writes; it reads up to 1024"""


def parsed(**fields: Any) -> ChatRequest:
    return parse_chat(encoded(chat_body(**fields)), Limits(), Defaults())


def refused(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parsed(**fields)
    return caught.value


def test_a_bare_question_gets_the_defaults_of_openai() -> None:
    request = parsed()
    assert (request.temperature, request.top_p, request.seed, request.stop) == (1.0, 1.0, None, ())
    assert (request.stream, request.include_usage, request.max_new_tokens) == (False, False, Limits().new_tokens)
    assert request.messages == ({"role": "user", "content": "What is this?"},)


def test_messages_of_the_user_that_follow_each_other_are_one_turn() -> None:
    def asked(*contents: Any) -> list[dict[str, Any]]:
        return [{"role": "user", "content": content} for content in contents]

    apart = asked([image_part()], [image_part()], "What?", [text_part("Why?"), image_part()])
    both = [image_part(), image_part(), text_part("What?"), text_part("\n"), text_part("Why?"), image_part()]
    assert parsed(messages=apart).messages == parsed(messages=asked(both)).messages
    answer = {"role": "assistant", "content": "A cat."}
    rounds = parsed(messages=[*asked([image_part()], "What?"), answer, *asked("Why?")])
    assert (
        rounds.messages
        == parsed(messages=[*asked([image_part(), text_part("What?")]), answer, *asked("Why?")]).messages
    )
    assert [source.param for source in rounds.images] == ["messages[0].content[0].image_url.url"]
    assert len(parsed(messages=[answer, answer, *asked("Why?")]).messages) == 3  # for the template to refuse


def test_null_is_the_same_as_nothing_for_every_parameter() -> None:
    names = {*NEUTRAL, *WITHOUT_EFFECT, "max_tokens", "max_completion_tokens", "seed", "stop", "stream", "temperature"}
    assert parsed(**dict.fromkeys(names)) == parsed()


def test_values_are_those_of_the_body() -> None:
    request = parsed(
        temperature=0, top_p=0.5, seed=-7, stop=["a", "b"], max_tokens=9, stream=True, stream_options={}, model="x"
    )
    assert (request.temperature, request.top_p, request.seed, request.stop) == (0.0, 0.5, -7, ("a", "b"))
    assert (request.stream, request.max_new_tokens, request.model) == (True, 9, "x")
    assert parsed(stop="one").stop == ("one",)
    assert (
        parsed(max_completion_tokens=3).max_new_tokens == parsed(max_tokens=3, max_completion_tokens=3).max_new_tokens
    )
    assert parsed(stream=True, stream_options={"include_usage": True}).include_usage


@pytest.mark.parametrize("name", NEUTRAL)
def test_an_unsupported_parameter_is_refused_unless_it_changes_nothing(name: str) -> None:
    for value in NEUTRAL[name]:
        parsed(**{name: value})
    error = refused(**{name: {"a": 1}})
    assert (error.param, error.code, error.status) == (name, "unsupported_parameter", 400)
    assert str(error).startswith(f"{name}: not supported by this server; expected ")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"n": 2}, "n: not supported by this server; expected 1 or no value"),
        ({"n": True}, "n: not supported by this server; expected 1 or no value"),
        ({"logprobs": True}, "logprobs: not supported by this server; expected false or no value"),
        ({"response_format": {"type": "json_object"}}, "response_format: not supported .* expected {.type.:.text.} or"),
        ({"max_token": 1}, "max_token: unknown parameter; did you mean max_tokens?"),
        ({"x" * 5000: 1}, "x+...: unknown parameter"),
        ({"model": None}, "model: got nothing; expected the name of a model"),
        ({"temperature": 3}, "temperature: got 3; expected a number from 0 to 2"),
        ({"temperature": True}, "temperature: got true; expected a number"),
        ({"temperature": "1"}, "temperature: got 1; expected a number"),
        ({"top_p": 0}, "top_p: got 0; expected a number above 0, up to 1; temperature: 0 always"),
        ({"top_p": 1.1}, "top_p: got 1.1; expected a number above 0, up to 1"),
        ({"seed": 1.5}, "seed: got 1.5; expected a whole number from -2"),
        ({"seed": 2**63}, "seed: got 9223372036854775808; expected a whole number from -2"),
        ({"max_tokens": 0}, "max_tokens: got 0; expected a whole number from 1 to 2048, the limit of this server"),
        ({"max_completion_tokens": 10**9}, "max_completion_tokens: got 1000000000; expected a whole number from 1 to"),
        ({"max_tokens": True}, "max_tokens: got true; expected a whole number"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens: differs from max_tokens"),
        ({"stop": ["a"] * 5}, "stop: got .*; expected a string, or a list of up to 4"),
        ({"stop": [""]}, "stop: got ; expected strings of 1 to 1,000 characters"),
        ({"stop": [1]}, "stop: got 1; expected strings"),
        ({"stream": "yes"}, "stream: got yes; expected true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options: has no effect without stream: true"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage: unknown parameter"),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage: got 1; expected true",
        ),
        ({"temperature": DEEP}, "temperature: got a deeply nested array; expected a number from 0 to 2"),
        ({"messages": None}, "messages: got nothing; expected a list of messages"),
        ({"messages": []}, "messages: got an empty list; expected a list of messages"),
        ({"messages": "hi"}, "messages: got string; expected a list of messages"),
    ],
)
def test_what_is_wrong_is_named_with_what_was_expected(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError, match=text.replace("?", r"\?")):
        parsed(**fields)


def test_messages_keep_the_order_of_texts_and_images() -> None:
    content = [text_part("Left:"), image_part("data:a"), text_part("right:"), image_part("data:b", detail="low")]
    request = parsed(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": content},
            {"role": "assistant", "content": [text_part("The left.")], "refusal": None, "tool_calls": []},
            {"role": "user", "content": "Why?"},
        ]
    )
    assert [message["role"] for message in request.messages] == ["system", "user", "assistant", "user"]
    assert request.messages[1]["content"] == [
        {"type": "text", "text": "Left:"},
        {"type": "image"},
        {"type": "text", "text": "right:"},
        {"type": "image"},
    ]
    assert [(image.url, image.is_low_detail) for image in request.images] == [("data:a", False), ("data:b", True)]
    assert request.images[1].param == "messages[1].content[3].image_url.url"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("hi", r"messages\[0\]: got string; expected an object"),
        ({"content": "a"}, r"messages\[0\].role: got null; expected one of system, developer, user, assistant"),
        ({"role": "tool", "content": "a"}, "got tool; expected one of .*; tools are not supported"),
        ({"role": ["user"], "content": "a"}, r'role: got \["user"\]'),
        ({"role": "user"}, r"messages\[0\].content: got null; expected a text or a list of parts"),
        ({"role": "user", "content": []}, r"messages\[0\].content: got an empty list"),
        ({"role": "user", "content": "a", "name": "b"}, r"messages\[0\].name: not supported by this server"),
        ({"role": "user", "content": ["a"]}, r"messages\[0\].content\[0\]: got string; expected a part"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "got a part of type input_audio; expected a part of"),
        ({"role": "user", "content": [{"type": "text"}]}, r"content\[0\].text: got null; expected a string"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "data:a"}]}, "expected an object whose url"),
        ({"role": "user", "content": [image_part("a", detail="most")]}, "detail: got most; expected auto, high or low"),
        ({"role": "user", "content": [image_part("a", detail=[])]}, r"detail: got \[\]; expected auto, high or low"),
        ({"role": "user", "content": [image_part("a", crop=1)]}, "image_url.crop: unknown parameter"),
        ({"role": "system", "content": [image_part("a")]}, "got an image in a message of system; images are shown by"),
        ({"role": "assistant", "content": "a"}, "the last message is the assistant's; expected a question to answer"),
    ],
)
def test_a_message_of_another_form_is_refused_by_its_number(message: object, text: str) -> None:
    with pytest.raises(RequestError, match=text):
        parsed(messages=[message])


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"[1]", "the body is JSON of type array; expected an object"),
        (b'{"a": NaN}', "the body is not JSON"),
        (b'{"a": "\xff"}', "the body is not JSON"),
        (b'{"a": "\\ud800"}', "the body is not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "the body is not JSON"),
        (b"[" * 300_000, "the body has 300,000 commas and brackets; expected at most 262,144"),
        (b'{"a":[' + b"[]," * 300_000 + b"[]]}", "commas and brackets; expected at most"),
    ],
)
def test_a_body_that_is_not_an_object_is_refused(body: bytes, text: str) -> None:
    with pytest.raises(RequestError, match=text) as caught:
        parse_chat(body, Limits(), Defaults())
    assert len(str(caught.value)) <= 300


def test_limits_are_those_of_the_server() -> None:
    many = {"role": "user", "content": [image_part("data:a")] * 3}
    for limits, text in (
        (Limits(images=2), "messages: show 3 images; this server allows at most 2"),
        (Limits(text_bytes=3), "messages: have 7 bytes of text; expected at most 3"),
        (Limits(messages=1), "messages: got 2; expected at most 1"),
    ):
        body = encoded(chat_body(messages=[{"role": "user", "content": "äöü?"}, many]))
        with pytest.raises(RequestError, match=text):
            parse_chat(body, limits, Defaults())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from([*NEUTRAL, "messages", "model", "stop", "stream", "stream_options", "seed", "top_p", "x"])
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url"]) | JSON}, optional={"text": JSON, "image_url": JSON}
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]) | JSON, "content": JSON | st.lists(PARTS)})
)


@settings(max_examples=60)
@given(st.dictionaries(FIELDS, JSON), MESSAGES | JSON)
def test_any_json_is_a_record_or_an_error_of_the_request(fields: dict[str, Any], messages: Any) -> None:
    body = {**chat_body(), "messages": messages, **fields}
    try:
        request = parse_chat(json.dumps(body).encode("utf-8", "replace"), Limits(), Defaults())
    except RequestError:
        return
    parts = [part for message in request.messages for part in message["content"] if part == {"type": "image"}]
    assert len(parts) == len(request.images)
