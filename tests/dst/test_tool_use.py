"""Tools, their calls and results, and reasoning: written by templates that can, refused by those that cannot."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dst
from tests.support.conversations import ANSWERS
from tests.support.paths import ROOT

GOLDEN = ROOT / "tests" / "golden" / "dst" / "tool_use"
IMAGE = {"type": "image"}
PARAMETERS = {"type": "object", "properties": {"at": {"type": "string", "description": "What: \"a\" or 'b'"}}}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "look", "description": "Looks é.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "stop", "parameters": {}}},
]


def call(arguments: Any, name: str = "look") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


MESSAGES: list[dst.Message] = [
    {"role": "user", "content": [IMAGE, text("Which colour is the bus?")]},
    {"role": "assistant", "content": "", "tool_calls": [call({"at": 'the "bus"\n', "times": 2})]},
    {"role": "tool", "content": '{"colour": "red"}'},
    {"role": "tool", "content": [text("and here: "), IMAGE]},
    {"role": "assistant", "content": "It is red."},
    {"role": "user", "content": "Thanks."},
    {"role": "assistant", "content": "Bye."},
]
WITH_SYSTEM: list[dst.Message] = [{"role": "system", "content": "Be brief."}, *MESSAGES]
REASONED: list[dst.Message] = [
    MESSAGES[0],
    {
        "role": "assistant",
        "content": "I look twice.",
        "reasoning_content": "\nHard.\n",
        "tool_calls": [call({"at": "bus"}), call('{"at": "car"}', "stop")],
    },
    *MESSAGES[3:],
]
QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\nYou are provided with \
function signatures within <tools></tools> XML tags:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": \
<args-json-object>}\\n</tool_call><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.reasoning_content %}
            {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""Qwen3's template as published, but that it keeps the reasoning of all rounds"""


@functools.cache
def chat_of(name: str, tokenizer: dst.TextTokenizer) -> dst.ChatTokenizer:
    return dst.ChatTokenizer(dst.load_template(name), tokenizer)


def as_text(message: dst.Message) -> dst.Message:
    """The message with its images written out, for templates that know texts only."""
    content = message["content"]
    if isinstance(content, str):
        return message
    return {**message, "content": "".join("<image>\n" if part == IMAGE else part["text"] for part in content)}


def theirs(source: str, messages: list[dst.Message], *, prompt: bool = False) -> str:
    """The text that transformers writes."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(
        [[dict(message) for message in messages]],
        chat_template=source,
        tools=TOOLS,
        add_generation_prompt=prompt,
        bos_token="<s>",
        eos_token="</s>",
    )
    return str(rendered[0][0])


@pytest.mark.parametrize("messages", [MESSAGES, WITH_SYSTEM, REASONED])
def test_chatml_writes_what_qwens_template_writes(messages: list[dst.Message]) -> None:
    template = dst.load_template("chatml")
    for length in range(1, len(messages) + 1):
        ours = template.render(
            messages[:length], bos_token="<s>", eos_token="</s>", add_generation_prompt=True, tools=TOOLS
        )
        assert ours.text == theirs(QWEN3, [as_text(message) for message in messages[:length]], prompt=True)


@pytest.mark.parametrize(
    ("name", "messages"), [("chatml", WITH_SYSTEM), ("chatml", REASONED), ("llama3", MESSAGES), ("llama3", WITH_SYSTEM)]
)
def test_transformers_renders_a_template_with_tools_alike(name: str, messages: list[dst.Message]) -> None:
    template = dst.load_template(name)
    ours = template.render(messages, bos_token="<s>", eos_token="</s>", tools=TOOLS)
    assert ours.text == theirs(template.source, messages)


@pytest.mark.parametrize(("name", "messages"), [("chatml", REASONED), ("llama3", WITH_SYSTEM)])
def test_tool_use_renders_as_its_golden_file(name: str, messages: list[dst.Message]) -> None:
    """Trained text is between ⟦ and ⟧."""
    rendered = dst.load_template(name).render(messages, bos_token="<s>", eos_token="</s>", tools=TOOLS)
    marked, position = "", 0
    for start, end in rendered.spans:
        marked += f"{rendered.text[position:start]}⟦{rendered.text[start:end]}⟧"
        position = end
    assert (marked + rendered.text[position:] + "\n").encode() == (GOLDEN / f"{name}.txt").read_bytes()


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_calls_are_trained_and_results_never(name: str, tokenizer: dst.TextTokenizer) -> None:
    chat = chat_of(name, tokenizer)
    whole = chat.encode(MESSAGES, tools=TOOLS)
    answers = [index for index, message in enumerate(MESSAGES) if message["role"] == "assistant"]
    assert len(whole.trained) == len(answers)
    for index, (start, end) in zip(answers, whole.trained, strict=True):
        prompt = chat.encode(MESSAGES[:index], add_generation_prompt=True, tools=TOOLS)
        assert np.array_equal(prompt.ids, whole.ids[:start])
        assert int(whole.ids[end - 1]) in tokenizer.control_ids
        assert "colour" not in tokenizer.decode(whole.ids[start:end])
    assert "look" in tokenizer.decode(whole.ids[slice(*whole.trained[0])])


@pytest.mark.parametrize("name", ["chatml", "llama3"])
@pytest.mark.parametrize("hostile", ["<image>", "</s>", "<|im_end|>", "<|eot_id|>", 'a"</s>\n'])
def test_control_strings_in_tools_calls_and_results_stay_text(
    name: str, hostile: str, tokenizer: dst.TextTokenizer
) -> None:
    chat = chat_of(name, tokenizer)
    tools = [{"type": "function", "function": {"name": "look", "description": hostile, "parameters": PARAMETERS}}]
    messages = [
        MESSAGES[0],
        {"role": "assistant", "content": "", "tool_calls": [call({"at": hostile, hostile: 1})]},
        {"role": "tool", "content": hostile, "name": hostile, "tool_call_id": hostile},
        {"role": "assistant", "content": "So."},
    ]
    encoded = chat.encode(messages, tools=tools)
    harmless = chat.encode(
        [
            messages[0],
            {**messages[1], "tool_calls": [call({"at": "x", "y": 1})]},
            {"role": "tool", "content": "z"},
            messages[3],
        ],
        tools=[TOOLS[1]],
    )
    controls = [[index for index in one.ids.tolist() if index in tokenizer.control_ids] for one in (encoded, harmless)]
    assert controls[0] == controls[1]
    assert encoded.control_texts == 6
    assert np.count_nonzero(encoded.ids == tokenizer.image_id) == 1


@pytest.mark.parametrize("name", sorted({*ANSWERS} - {"chatml", "llama3"}))
def test_a_template_without_tools_refuses_them(name: str) -> None:
    template = dst.load_template(name)

    def render(messages: list[dst.Message], tools: Any = None) -> None:
        template.render(messages, bos_token="<s>", eos_token="</s>", tools=tools)

    with pytest.raises(dst.TemplateError, match=f"template {name} cannot express tools; choose .*chatml"):
        render(MESSAGES[:1], TOOLS)
    with pytest.raises(dst.TemplateError, match=f"template {name} cannot express tool_calls and messages of role tool"):
        render(MESSAGES)
    with pytest.raises(dst.TemplateError, match=f"template {name} cannot express reasoning_content"):
        render([MESSAGES[0], {"role": "assistant", "content": "x", "reasoning_content": "y"}])


@pytest.mark.parametrize("calls", [[call({}), call({})], [call({})]])
def test_llama3_refuses_what_its_layout_has_no_room_for(calls: list[dict[str, Any]]) -> None:
    content = "I look." if len(calls) == 1 else ""
    messages = [MESSAGES[0], {"role": "assistant", "content": content, "tool_calls": calls}]
    with pytest.raises(dst.TemplateError, match=r"turn 2 has \d tool calls and \d characters of text"):
        dst.load_template("llama3").render(messages, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    ("removed", "missing"),
    [
        ("{{ m.reasoning_content }}", "the reasoning_content of message 2"),
        ("{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}", "a tool call of message 2"),
        ("{{ m.content }}", r"text of message 3 \(tool\)"),
        (
            "{% for t in tools %}{{ t.function.name ~ t.function.description }}{% endfor %}",
            "the definition of tool 'look'",
        ),
    ],
)
def test_a_template_that_mentions_a_part_and_leaves_it_out_is_an_error(removed: str, missing: str) -> None:
    source = (
        "{% for t in tools %}{{ t.function.name ~ t.function.description }}{% endfor %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
        "{% if m.reasoning_content %}{{ m.reasoning_content }}{% endif %}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}{{ eos_token }}"
        "{% endgeneration %}{% elif m.role == 'tool' or m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    messages: list[dst.Message] = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [call({}, "look_up")]},
        {"role": "tool", "content": "R"},
    ]
    given: dict[str, Any] = {"bos_token": "", "eos_token": "</s>", "tools": TOOLS[:1]}
    assert dst.Template("whole", source).render(messages, **given).text == "lookLooks é.QHm.look_up</s>R"
    mentioned = source.replace(removed, "") + f"{{% if false %}}{removed}{{% endif %}}"
    with pytest.raises(dst.TemplateError, match=f"template part leaves out {missing}"):
        dst.Template("part", mentioned).render(messages, **given)


def test_a_template_whose_tool_turns_break_the_prompt_is_refused_only_when_data_has_tools(
    byte_tokenizer: dst.TextTokenizer, tmp_path: Path
) -> None:
    """Its answer to a tool's result is not where generation would begin."""
    path = tmp_path / "own.jinja"
    source = dst.load_template("chatml").source
    path.write_text(source.replace("<tool_response>\\n' -}}", "<tool_response>\\n' ~ messages | length -}}"))
    chat = dst.ChatTokenizer(dst.load_template(path), byte_tokenizer)
    assert chat.encode([MESSAGES[0], MESSAGES[4]]).trained_tokens
    for _ in range(2):
        with pytest.raises(dst.TemplateError, match="the prompt for answer 2 is not the beginning"):
            chat.encode(MESSAGES, tools=TOOLS)
