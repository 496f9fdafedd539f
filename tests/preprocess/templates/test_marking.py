"""Copies of published templates: their texts and spans against what transformers renders.

`published/` has templates in the shape of those that models come with; `SPANS` says what each must train.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

import dst
from preprocess.templates.examples import convert
from preprocess.templates.marking import Marked, mark
from preprocess.templates.reference import Reference, reference_of

FOLDER = Path(__file__).parent / "published"
BOS, EOS = "<s>", "</s>"
PLACEHOLDERS = {"gemma3": "<start_of_image>", "qwen2_vl": "<|image_pad|>"}

SPANS = {
    "chatml": "{}<|im_end|>",
    "chatml_text": "{}<|im_end|>",
    "gemma": "{}<end_of_turn>",
    "gemma3": "{}<end_of_turn>",
    "llama2": " {} </s>",
    "llama3": "{}<|eot_id|>",
    "llava_1_5": " {}</s>",
    "llava_interleave": "{}<|im_end|>",
    "mistral": "{}</s>",
    "mistral_v3": " {}</s>",
    "phi3": "{}<|end|>",
    "qwen2_5": "{}<|im_end|>",
    "qwen2_vl": "{}<|im_end|>",
    "vicuna": " {}</s>",
    "zephyr": "{}</s>",
}
REFUSES_SYSTEM = {"gemma", "mistral", "mistral_v3"}

IMAGE = {"type": "image"}
TALK: list[dst.Message] = [
    {"role": "user", "content": [IMAGE, IMAGE, {"type": "text", "text": "Which of the two is cheaper?"}]},
    {"role": "assistant", "content": "The green one, I think."},
    {"role": "user", "content": [{"type": "text", "text": "Why? "}, IMAGE]},
    {"role": "assistant", "content": "Look: it says so."},
    {"role": "user", "content": "Thanks!"},
    {"role": "assistant", "content": "Bye."},
]
SYSTEM: dst.Message = {"role": "system", "content": "You know prices."}

names = pytest.mark.parametrize("name", sorted(SPANS))


@functools.cache
def marked(name: str) -> tuple[Marked, Reference]:
    source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    reference = reference_of(source, bos_token=BOS, eos_token=EOS, adds_begin=True, add_end=name == "llava_1_5")
    return mark(name, source, reference), reference


def theirs(source: str, messages: list[dst.Message], **options: Any) -> tuple[str, list[tuple[int, int]]]:
    """The text that transformers writes, and where it finds marks."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(
        [[dict(message) for message in messages]],
        chat_template=source,
        bos_token=BOS,
        eos_token=EOS,
        return_assistant_tokens_mask="generation" in source,
        **options,
    )
    return str(rendered[0][0]), rendered[1][0] if "generation" in source else []


@names
@pytest.mark.parametrize("is_listed", [False, True], ids=["texts", "parts"])
@pytest.mark.parametrize("system", [[], [SYSTEM]], ids=["without system turn", "with system turn"])
def test_a_copy_writes_the_texts_of_the_original_and_trains_its_answers(
    name: str, system: list[dst.Message], is_listed: bool
) -> None:
    if system and name in REFUSES_SYSTEM:
        assert "system turns" in marked(name)[0].lacks
        return
    copy, reference = marked(name)
    messages = [*system, *TALK]
    if is_listed:
        messages = [{**message, "content": convert(message, "parts")["content"]} for message in messages]
    original = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    taken = [convert(message, reference.abilities.contents) for message in messages]
    text = theirs(original, taken)[0].replace(PLACEHOLDERS.get(name, "<image>"), "<image>")
    if name == "llava_1_5":
        for answer in ("I think.", "says so.", "Bye."):
            text = text.replace(answer, answer + EOS)
    expected = text if text.startswith(BOS) else BOS + text
    rendered = copy.template.render(messages, bos_token=BOS, eos_token=EOS)
    assert rendered.text == expected
    answers = [SPANS[name].format(message["content"]) for message in TALK if message["role"] == "assistant"]
    assert [rendered.text[start:end] for start, end in rendered.spans] == answers
    their_text, their_spans = theirs(copy.template.source, messages)
    assert their_text == expected
    assert [their_text[start:end].rstrip() for start, end in their_spans] == answers


@names
def test_a_prompt_of_a_copy_is_that_of_the_original_and_begins_the_conversation(name: str) -> None:
    copy, reference = marked(name)
    original = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    taken = [convert(message, reference.abilities.contents) for message in TALK[:1]]
    text = theirs(original, taken, add_generation_prompt=True)[0].replace(PLACEHOLDERS.get(name, "<image>"), "<image>")
    prompt = copy.template.render(TALK[:1], bos_token=BOS, eos_token=EOS, add_generation_prompt=True)
    assert prompt.text == (text if text.startswith(BOS) else BOS + text)
    assert copy.template.render(TALK[:2], bos_token=BOS, eos_token=EOS).text.startswith(prompt.text)


def test_calls_of_tools_are_trained_where_a_template_has_them() -> None:
    copy, _ = marked("qwen2_5")
    call = {"type": "function", "function": {"name": "weigh", "arguments": {"item": "bus"}}}
    messages: list[dst.Message] = [
        {"role": "user", "content": "How heavy?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "12 t"},
        {"role": "assistant", "content": "Twelve tons."},
    ]
    tools = [{"type": "function", "function": {"name": "weigh", "description": "Weighs.", "parameters": {}}}]
    rendered = copy.template.render(messages, bos_token=BOS, eos_token=EOS, tools=tools)
    assert [rendered.text[start:end] for start, end in rendered.spans] == [
        '<tool_call>\n{"name": "weigh", "arguments": {"item": "bus"}}\n</tool_call><|im_end|>',
        "Twelve tons.<|im_end|>",
    ]
    assert not copy.lacks
    assert "tool calls" in marked("chatml")[0].lacks


def test_a_name_that_transformers_takes_as_empty_is_empty_in_the_copy() -> None:
    assert marked("qwen2_vl")[0].variables == ("add_vision_id",)


def test_marks_that_are_right_stay() -> None:
    source = marked("zephyr")[0].template.source
    reference = reference_of(source, bos_token=BOS, eos_token=EOS, adds_begin=True, add_end=False)
    again = mark("again", source, reference)
    assert (again.marks, again.template.source) == ("kept", source)
    assert marked("llava_interleave")[0].marks == "replaced"
    assert marked("chatml")[0].marks == "none"


LOOP = "{% for m in messages %}{{ BODY }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for m in messages %}{{ m.content }", "line 1: unexpected '}'"),
        ("{{ raise_exception('no chats') }}", r"it refuses a question with its answer \(no chats\)"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "it does not write the text of user turns"),
        (LOOP.replace("BODY", "m.content | upper"), "it does not write the text of user turns"),
        (
            "{% for m in messages %}{{ m.content if m.role == 'user' else m.content | upper }}{% endfor %}",
            "it does not write the text of assistant turns as it is",
        ),
        (
            LOOP.replace("BODY", "m.role + ': ' + m.content + '\\n'"),
            "ends an answer with no token.*--end-token writes </s>",
        ),
        (
            LOOP.replace("BODY", "m.role + ':\\n' + m.content + '<end>'"),
            r"the prompt for answer 1 is not the beginning of the finished conversation: .*assistant: ' where that has "
            r"'.*assistant:\\n",
        ),
        (
            "{% for m in messages %}{{ m.role + ': ' + m.content + '<end>' }}{% endfor %}",
            "it writes 'assistant:' before an answer, and not at the end of a prompt",
        ),
        (
            "{% for m in messages[:2] %}{{ m.role + ': ' + m.content + '<end>' }}{% endfor %}",
            "leaves out a part of a conversation",
        ),
        ("{{ ''.__class__.__mro__ }}", "it refuses a question with its answer .*unsafe"),
    ],
)
def test_a_template_whose_answers_cannot_be_marked_is_refused_with_the_reason(source: str, reason: str) -> None:

    def attempt() -> None:
        mark("mine", source, reference_of(source, bos_token=BOS, eos_token=EOS, adds_begin=False, add_end=False))

    with pytest.raises(dst.TemplateError, match=reason) as caught:
        attempt()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        # A header within a branch, and an end behind it.
        "{% for m in messages %}{% if m.role == 'assistant' %}<a>{{ m.content }}{% else %}<u>{{ m.content }}{% endif %}"
        "<end>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}",
        # Every turn by a macro.
        "{% macro turn(m) %}<{{ m.role }}>{{ m.content }}<end>{% endmacro %}{% for m in messages %}{{ turn(m) }}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        # White space that signs strip, raw text, and line breaks.
        "{%- for m in messages -%}\n  <{{- m.role -}}>  \n  {{- m.content }}{% raw %}<end>{% endraw %}\n{% endfor -%}\n"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
        # A name for the message, and a loop over numbers.
        "{% for i in range(messages | length) %}{% set m = messages[i] %}{{ '<' ~ m.role ~ '>' ~ m.content ~ '<end>' }}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        # Lists in user turns only; the texts of others are printed as they are.
        "{% for m in messages %}{{ '<' + m.role + '>' }}{% if m.role != 'user' or m.content is string %}"
        "{{ m.content }}{% else %}{% for part in m.content %}{{ part.text or '<image>\\n' }}{% endfor %}{% endif %}"
        "{{ '<end>' }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}",
        # Parentheses, and pieces that are no texts.
        "{% for m in messages %}{{ ('<' + m.role + '>') ~ loop.index ~ ':' ~ (m.content + '<end>') }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' ~ (messages | length + 1) ~ ':' }}{% endif %}",
    ],
)
def test_answers_are_found_in_templates_of_other_shapes(source: str) -> None:
    reference = reference_of(source, bos_token=BOS, eos_token=EOS, adds_begin=False, add_end=False)
    copy = mark("mine", source, reference)
    messages = [convert(message, "texts") for message in TALK]
    rendered = copy.template.render(TALK, bos_token=BOS, eos_token=EOS)
    assert rendered.text == theirs(source, messages)[0]
    assert [rendered.text[start:end] for start, end in rendered.spans] == [
        f"{message['content']}<end>" for message in TALK if message["role"] == "assistant"
    ]
