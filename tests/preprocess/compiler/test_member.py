"""One conversation as part of a sample: prompts, untrained answers, tools, and cuts at the length limit."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest

import dst
from preprocess.compiler.concat import join
from preprocess.compiler.member import Member, make_member
from preprocess.compiler.messages import messages_of
from preprocess.compiler.task import TaskContext, Tools
from preprocess.conversation import Conversation, Image, RecordSource, Role, ToolCall, Turn
from preprocess.errors import RejectError
from preprocess.images.prepare import ImagePolicy
from tests.support.small_blends import TOKENIZER, jpeg

IMAGE = Image(name="0.jpg")
IMAGE_TOKENS = 16


class OneImage:
    """An image store that has the same image under every name."""

    def read(self, _: Image) -> bytes:
        return jpeg(0)


@functools.cache
def tools_of(template: str) -> Tools:
    chat = dst.ChatTokenizer(dst.load_template(template), dst.load_tokenizer(TOKENIZER))
    return Tools(chat, cast(Any, OneImage()), cast(Any, None), None)


def context(
    *,
    max_length: int = 4096,
    too_long: Literal["reject", "cut"] = "reject",
    prompt: str | None = None,
    template: str = "chatml",
    concat: int = 1,
) -> TaskContext:
    nowhere = Path("nowhere")
    return TaskContext(
        dataset="d",
        build=nowhere,
        cache=nowhere,
        spool=nowhere,
        stores=(),
        tokenizer=nowhere,
        template_name=template,
        template="",
        image=ImagePolicy(),
        image_tokens=IMAGE_TOKENS,
        max_length=max_length,
        max_images=8,
        max_tiles=None,
        tiled=False,
        too_long=too_long,
        prompt=prompt,
        concat=concat,
        share=1,
        image_rules=(),
        decoded=None,
    )


def turn(role: Role, *parts: str | Image, **more: Any) -> Turn:
    return Turn(role=role, parts=parts, **more)


def conversation(*turns: Turn, **more: Any) -> Conversation:
    return Conversation(id="a", turns=turns, sources=(RecordSource(file="f", record="1"),), **more)


def member(made: Conversation, template: str = "chatml", **limits: Any) -> Member:
    return make_member(0, made, tools_of(template), context(template=template, **limits))


def trained_text(made: Member) -> str:
    encoded = made.encoded
    return tools_of("chatml").chat.tokenizer.decode(encoded.ids[encoded.labels != dst.IGNORE])


def rejected(made: Conversation, template: str = "chatml", **limits: Any) -> RejectError:
    with pytest.raises(RejectError) as error:
        member(made, template, **limits)
    return error.value


ROUNDS = conversation(
    turn("user", IMAGE, "What is it?"),
    turn("assistant", "A red bus on a street."),
    turn("user", "And now?"),
    turn("assistant", "Still a red bus, and a blue car that follows it."),
)


def test_an_untrained_answer_is_context_without_labels() -> None:
    first = replace(ROUNDS.turns[1], trained=False)
    made = member(conversation(ROUNDS.turns[0], first, *ROUNDS.turns[2:]))
    assert np.array_equal(made.encoded.ids, member(ROUNDS).encoded.ids)
    assert trained_text(made) == "Still a red bus, and a blue car that follows it.<|im_end|>"


def test_a_conversation_without_a_trained_answer_is_a_reject() -> None:
    answers = (replace(one, trained=False) if one.role == "assistant" else one for one in ROUNDS.turns)
    assert rejected(conversation(*answers)).reason == "nothing_trained"


def test_a_conversation_is_cut_after_a_trained_answer_and_never_ends_in_untrained_ones() -> None:
    untrained = replace(ROUNDS.turns[3], trained=False)
    long = conversation(*ROUNDS.turns, ROUNDS.turns[2], untrained, ROUNDS.turns[2], untrained)
    whole, two_rounds = member(long), member(ROUNDS)
    assert whole.notes == ()
    for limit in (whole.length - 1, two_rounds.length):
        made = member(long, max_length=limit)
        assert made.notes == ("rounds_cut",)
        assert np.array_equal(made.encoded.ids, two_rounds.encoded.ids)
    made = member(long, max_length=two_rounds.length - 1)
    assert np.array_equal(made.encoded.ids, member(conversation(*ROUNDS.turns[:2])).encoded.ids)


def test_a_conversation_whose_first_trained_answer_does_not_fit_is_a_reject_that_says_so() -> None:
    late = conversation(ROUNDS.turns[0], replace(ROUNDS.turns[1], trained=False), *ROUNDS.turns[2:])
    length = member(late).length
    error = rejected(late, max_length=length - 1)
    assert error.reason == "too_long"
    assert f"with its first trained answer it has length {length}, of which" in error.detail
    assert f"limits.max_length is {length - 1}" in error.detail


@pytest.mark.parametrize("template", ["chatml", "visualchat", "llama2"])
def test_the_end_of_an_answer_is_cut_with_its_end_token_and_never_the_question(template: str) -> None:
    made = conversation(*ROUNDS.turns[:2])
    whole = member(made, template)
    ((start, end),) = whole.encoded.trained
    before = (IMAGE_TOKENS - 1) * whole.encoded.images
    for limit in range(before + start + 1, before + end):
        cut = member(made, template, max_length=limit, too_long="cut")
        assert cut.length == limit
        assert cut.notes == ("answer_cut",)
        tokens = limit - before
        assert np.array_equal(cut.encoded.ids, whole.encoded.ids[:tokens])
        assert np.array_equal(cut.encoded.labels, whole.encoded.labels[:tokens])
        assert cut.encoded.trained == ((start, tokens),)
        assert int(whole.encoded.ids[end - 1]) not in cut.encoded.labels
        assert len(cut.images) == 1
    for limit in (before + start, before, 1):
        assert rejected(made, template, max_length=limit, too_long="cut").reason == "too_long"


def test_later_rounds_are_removed_whole_before_an_answer_is_cut() -> None:
    one_round = member(conversation(*ROUNDS.turns[:2]))
    made = member(ROUNDS, max_length=one_round.length + 3, too_long="cut")
    assert np.array_equal(made.encoded.ids, one_round.encoded.ids)
    assert made.notes == ("rounds_cut",)
    shorter = member(ROUNDS, max_length=one_round.length - 3, too_long="cut")
    assert shorter.notes == ("rounds_cut", "answer_cut")
    assert np.array_equal(shorter.encoded.ids, one_round.encoded.ids[:-3])


def test_text_that_follows_the_end_token_may_be_cut_without_a_note() -> None:
    """chatml writes a line break there."""
    made = conversation(*ROUNDS.turns[:2])
    cut = member(made, max_length=member(made).length - 1, too_long="cut")
    assert cut.notes == ()
    assert trained_text(cut) == "A red bus on a street.<|im_end|>"


TOOL = '{"type":"function","function":{"name":"look","description":"Looks.","parameters":{}}}'
TOOL_TURNS = (
    turn("user", IMAGE, "Which colour?"),
    turn("assistant", tool_calls=(ToolCall(name="look", arguments='{"at":"bus"}', id="c1"),)),
    turn("tool", "red", tool_name="look", call_id="c1"),
    turn("assistant", "It is red."),
)


def test_tool_calls_are_trained_with_their_definitions_in_the_context() -> None:
    made = member(conversation(*TOOL_TURNS, tools=(TOOL,)))
    assert '"description": "Looks."' in made.encoded.text
    assert trained_text(made) == (
        '<tool_call>\n{"name": "look", "arguments": {"at": "bus"}}\n</tool_call><|im_end|>It is red.<|im_end|>'
    )


def test_a_conversation_with_tools_may_be_cut_after_a_call() -> None:
    made = conversation(*TOOL_TURNS, tools=(TOOL,))
    cut = member(made, max_length=member(made).length - 1)
    assert cut.notes == ("rounds_cut",)
    assert trained_text(cut).endswith("</tool_call><|im_end|>")
    assert [message["role"] for message in cut.messages] == ["user", "assistant"]


def test_tools_that_a_template_cannot_express_are_a_reject() -> None:
    error = rejected(conversation(*TOOL_TURNS, tools=(TOOL,)), "vicuna")
    assert error.reason == "template"
    assert "cannot express tools and tool_calls and messages of role tool" in error.detail


def test_only_conversations_with_the_same_tools_are_joined() -> None:
    context_of_two = context(concat=2)
    made = [
        replace(conversation(*TOOL_TURNS, tools=tools), groups=(str(number),))
        for number, tools in enumerate([(TOOL,), (TOOL,), (TOOL.replace("Looks", "Sees"),), ()])
    ]
    tools = tools_of("chatml")
    members = iter([make_member(row, one, tools, context_of_two) for row, one in enumerate(made)])
    groups = [(len(group), encoded) for group, encoded in join(members, tools, context_of_two)]
    assert [count for count, _ in groups] == [2, 1, 1]
    assert [encoded.text.count("Looks.") for _, encoded in groups] == [1, 0, 0]
    assert groups[0][1].text.count("It is red.") == 2


def test_a_template_that_moves_images_out_of_their_text_is_noted() -> None:
    made = conversation(turn("user", "Is ", IMAGE, " older than ", IMAGE, "?"), turn("assistant", "Yes."))
    assert member(made, "vicuna").notes == ("images_moved",)
    assert member(made, "chatml").notes == ()


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("What?",), "What?\nOne word."),
        (("What?\nOne word. ",), "What?\nOne word. "),
        ((IMAGE, "What?"), [{"type": "image"}, {"type": "text", "text": "What?\nOne word."}]),
        (("What?", IMAGE), [{"type": "text", "text": "What?\nOne word."}, {"type": "image"}]),
        ((IMAGE,), [{"type": "image"}, {"type": "text", "text": "One word."}]),
        (
            ("A: ", IMAGE, "B: ", IMAGE),
            [
                *({"type": "text", "text": "A: "}, {"type": "image"}),
                *({"type": "text", "text": "B: "}, {"type": "image"}),
                {"type": "text", "text": "\nOne word."},
            ],
        ),
    ],
)
def test_a_prompt_ends_every_question_once(parts: tuple[str | Image, ...], expected: Any) -> None:
    made = conversation(turn("system", "S"), turn("user", *parts), turn("assistant", "A"), turn("tool", "T"))
    messages = messages_of(made, "One word.")
    assert [message["content"] for message in messages] == ["S", expected, "A", "T"]
    assert messages_of(made, None)[1]["content"] != expected or expected == "What?\nOne word. "


def test_the_prompt_is_part_of_the_sample_and_is_not_trained() -> None:
    made = member(ROUNDS, prompt="Use one word.")
    assert made.encoded.text.count("?\nUse one word.<|im_end|>") == 2
    assert trained_text(made) == trained_text(member(ROUNDS))
