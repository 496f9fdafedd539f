"""dst.messages: the form of what templates render, and answers that are context only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dst
from dst.messages import check_messages
from tests.support.conversations import ANSWERS

IMAGE = {"type": "image"}
CALL = {"type": "function", "function": {"name": "look", "arguments": {}}}
QUESTION: dst.Message = {"role": "user", "content": [IMAGE, {"type": "text", "text": "What is it?"}]}


def answer(text: str, **more: Any) -> dst.Message:
    return {"role": "assistant", "content": text, **more}


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "message 1: a user message has tool_calls; expected"),
        ({"role": "tool", "content": "x", "reasoning_content": "y"}, "a tool message has reasoning_content"),
        ({"role": "user", "content": "x", "trained": False}, "a user message has trained"),
        (answer("x", trained=0), "trained is 0; expected true or false"),
        (answer("x", reasoning_content=["y"]), "reasoning_content is not text"),
        (answer("x", tool_calls=CALL), "tool_calls is dict; expected a list"),
        (answer("x", tool_calls=[{"name": "look", "arguments": {}}]), "a tool call is .*expected .*function"),
        (answer("x", tool_calls=[{"function": {"name": "look"}}]), "a tool call is"),
        ({"role": "assistant", "content": None}, "content is NoneType"),
    ],
)
def test_keys_of_another_form_are_an_error(message: dst.Message, error: str) -> None:
    with pytest.raises(dst.TemplateError, match=error):
        check_messages([message])


def test_a_tool_call_needs_no_content() -> None:
    assert check_messages([QUESTION, {"role": "assistant", "tool_calls": [CALL]}]) == 1


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_an_untrained_answer_keeps_its_tokens_and_loses_its_labels(
    name: str, byte_tokenizer: dst.TextTokenizer
) -> None:
    chat = dst.ChatTokenizer(dst.load_template(name), byte_tokenizer)
    all_trained = [QUESTION, answer("One."), QUESTION, answer("Two."), QUESTION, answer("Three.")]
    flagged = [*all_trained[:3], answer("Two.", trained=False), *all_trained[4:]]
    whole, encoded = chat.encode(all_trained), chat.encode(flagged)
    assert np.array_equal(encoded.ids, whole.ids)
    first, second, third = whole.trained
    assert encoded.trained == (first, third)
    expected = whole.labels.copy()
    expected[slice(*second)] = dst.IGNORE
    assert np.array_equal(encoded.labels, expected)


def test_templates_do_not_see_whether_an_answer_is_trained(byte_tokenizer: dst.TextTokenizer, tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.keys() | list }}"
        "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{% for p in m.content if p.type == 'image' %}<image>{% endfor %}{% endif %}{% endfor %}"
    )
    template = dst.Template("keys", source)
    for trained in (True, False):
        rendered = template.render([answer("x", trained=trained)], bos_token="", eos_token="</s>")
        assert rendered.text == "['role', 'content']x</s>"
        assert rendered.spans == (((19, 24),) if trained else ())
        assert rendered.answers == ((19, 24),)


def test_a_template_without_one_block_per_answer_cannot_leave_one_untrained() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' and m.content != 'skip' %}"
        "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    template = dst.Template("skips", source)
    with pytest.raises(dst.TemplateError, match="skips marks 1 trained spans for 2 assistant messages"):
        template.render([answer("skip", trained=False), answer("x")], bos_token="", eos_token="</s>")


@pytest.mark.parametrize(
    ("parts", "is_moved"),
    [
        ([None, None, "Which is older?"], False),
        (["What is this?", None], False),
        (["Is ", None, " older than ", None, "?"], True),
        ([None, "is A. This is B: ", None], True),
        ([None, " \n", None, "Which?"], False),
        (["x"], False),
    ],
)
def test_images_that_lose_their_place_in_a_text_are_noticed(
    parts: list[str | None], is_moved: bool, byte_tokenizer: dst.TextTokenizer
) -> None:
    content = [IMAGE if part is None else {"type": "text", "text": part} for part in parts]
    messages = [{"role": "user", "content": content}, answer("So.")]
    moved = {
        name: dst.ChatTokenizer(dst.load_template(name, variables), byte_tokenizer).encode(messages).images_moved
        for name, variables in [
            ("chatml", {}),
            ("llama2", {}),
            ("llama3", {}),
            ("visualchat", {"references": True}),
            ("vicuna", {"references": True}),
        ]
    }
    assert not any(moved.values()), moved
    for name in ("visualchat", "vicuna"):
        chat = dst.ChatTokenizer(dst.load_template(name), byte_tokenizer)
        assert chat.encode(messages).images_moved is is_moved


def test_references_name_an_image_where_it_was_in_the_text() -> None:
    messages: list[dst.Message] = [
        QUESTION,
        answer("A bus."),
        {"role": "user", "content": [*[IMAGE, {"type": "text", "text": "Older than "}] * 2, IMAGE]},
    ]
    for name, expected in {
        "visualchat": "### Image 2:\n<image>\n### Image 3:\n<image>\n### Image 4:\n<image>\n\n"
        "### Question:\nOlder than Image 3Older than Image 4\n\n",
        "vicuna": "USER: Image 2: <image>\nImage 3: <image>\nImage 4: <image>\nOlder than Image 3Older than Image 4 ",
    }.items():
        template = dst.load_template(name, {"references": True})
        assert template.render(messages, bos_token="", eos_token="</s>").text.endswith(expected)
