"""Templates in the shape of those that models are published with, with generation blocks and `<image>` put in.

They use what built-in templates do not: undefined names, white space from line breaks, `continue`, texts walked by
character, messages sliced and rebound.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import dst
from tests.support.paths import ROOT
from tests.support.text_tokenizers import BYTE_FOLDER

FOLDER = ROOT / "tests" / "dst" / "published"
ADDED = ("<start_of_turn>", "<end_of_turn>", "<|vision_start|>", "<|vision_end|>")
VARIABLES: dict[str, dict[str, Any]] = {
    "gemma3": {},
    "llama3_2": {"date_string": "26 Jul 2024"},
    "qwen2_5_vl": {"add_vision_id": False},
}
ENDS = {"gemma3": "<end_of_turn>", "llama3_2": "<|eot_id|>", "qwen2_5_vl": "<|im_end|>"}
IMAGE = {"type": "image"}
MESSAGES: list[dst.Message] = [
    {"role": "user", "content": [IMAGE, {"type": "text", "text": "Is it older than "}, IMAGE]},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "No."},
]
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks at </s>.", "parameters": {}}}]
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": 'the "bus"'}}}


@functools.cache
def chat_of(name: str) -> dst.ChatTokenizer:
    template = dst.load_template(FOLDER / f"{name}.jinja", VARIABLES[name])
    return dst.ChatTokenizer(template, dst.load_tokenizer(BYTE_FOLDER, ADDED))


def theirs(chat: dst.ChatTokenizer, messages: list[dst.Message], **given: Any) -> str:
    """The text that transformers writes."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(
        [[dict(message) for message in messages]],
        chat_template=chat.template.source,
        bos_token=chat.tokenizer.bos_token,
        eos_token=chat.tokenizer.eos_token,
        **given,
    )
    return str(rendered[0][0])


@pytest.mark.parametrize("name", sorted(VARIABLES))
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_a_published_template_trains_answers_and_their_end_token(name: str, system: list[dst.Message]) -> None:
    chat = chat_of(name)
    messages = [*system, *MESSAGES]
    encoded = chat.encode(messages)
    assert encoded.text == theirs(chat, messages)
    trained = [chat.tokenizer.decode(encoded.ids[start:end]) for start, end in encoded.trained]
    assert trained == [f"Yes.{ENDS[name]}", f"No.{ENDS[name]}"]
    assert encoded.images == np.count_nonzero(encoded.ids == chat.tokenizer.image_id) == 2
    assert not encoded.images_moved
    prompt = chat.encode(messages[:-1], add_generation_prompt=True)
    assert prompt.text == theirs(chat, messages[:-1], add_generation_prompt=True)
    assert np.array_equal(prompt.ids, encoded.ids[: encoded.trained[1][0]])


def test_a_published_template_with_tools_writes_them_as_transformers_does() -> None:
    """This one writes a result as JSON, with its quotes escaped."""
    chat = chat_of("llama3_2")
    messages: list[dst.Message] = [
        {"role": "user", "content": "Which colour?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"colour": "red </s>"}'},
        {"role": "assistant", "content": "Red."},
    ]
    encoded = chat.encode(messages, tools=TOOLS)
    assert encoded.text == theirs(chat, messages, tools=TOOLS)
    assert chat.tokenizer.control["</s>"] not in encoded.ids
    trained = [chat.tokenizer.decode(encoded.ids[start:end]) for start, end in encoded.trained]
    assert trained == ['{"name": "look", "parameters": {"at": "the \\"bus\\""}}<|eot_id|>', "Red.<|eot_id|>"]
    with pytest.raises(dst.TemplateError, match=r"leaves out text of message 2 \(assistant\)"):
        chat.encode([messages[0], {**messages[1], "content": "I look."}, *messages[2:]], tools=TOOLS)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("qwen2_5_vl", "'add_vision_id' is undefined; set add_vision_id under `variables`"),
        ("llama3_2", r"strftime_now would make the text depend on the day; .*`variables`.*date_string"),
    ],
)
def test_what_a_published_template_leaves_open_is_named_with_the_setting(name: str, hint: str) -> None:
    with pytest.raises(dst.TemplateError, match=rf"{name}\.jinja, line \d+: {hint}"):
        dst.ChatTokenizer(dst.load_template(FOLDER / f"{name}.jinja"), dst.load_tokenizer(BYTE_FOLDER, ADDED))
