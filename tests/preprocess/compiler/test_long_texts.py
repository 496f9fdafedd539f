"""Texts that cannot fit are known before they are tokenized, and all others give the tokens that they always gave."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dst
from preprocess.compiler import long_texts
from preprocess.compiler.member import Member, tokenize
from preprocess.compiler.task import TaskContext, Tools
from preprocess.conversation import Conversation, RecordSource, ToolCall, Turn
from preprocess.errors import RejectError
from preprocess.images.prepare import ImagePolicy
from tests.support.paths import ROOT
from tests.support.small_blends import chat_blend, chat_record, rejects_of

WORDS = st.sampled_from(
    ["a bus", "rot ", "日本語", "😀", "    ", "\n\n", "é", "x" * 90, "</s>", "1234567890", "def f():\n"]
)
TEXTS = st.lists(WORDS, min_size=1, max_size=60).map("".join).filter(str.strip)
NOWHERE = Path("nowhere")


def context(max_length: int, too_long: str) -> TaskContext:
    return TaskContext(
        dataset="d",
        build=NOWHERE,
        cache=NOWHERE,
        spool=NOWHERE,
        stores=(),
        tokenizer=NOWHERE,
        template_name="vicuna",
        template="",
        image=ImagePolicy(),
        image_tokens=16,
        max_length=max_length,
        max_images=8,
        max_tiles=None,
        tiled=False,
        too_long=cast(Any, too_long),
        prompt=None,
        concat=1,
        share=1,
        image_rules=(),
        decoded=None,
    )


def conversation(*texts: str, **more: Any) -> Conversation:
    turns = [Turn(role=("user", "assistant")[index % 2], parts=(text,)) for index, text in enumerate(texts)]
    return Conversation(id="a", turns=tuple(turns), sources=(RecordSource(file="f", record="1"),), **more)


def outcome(made: Conversation, tools: Tools, limits: TaskContext) -> Member | str:
    """The member, or the reason of its reject."""
    try:
        return tokenize(0, made, tools, limits)
    except RejectError as error:
        return error.reason


@pytest.fixture(scope="module")
def tools(tokenizer: dst.TextTokenizer) -> Tools:
    return Tools(dst.ChatTokenizer(dst.load_template("vicuna"), tokenizer), cast(Any, None), cast(Any, None), None)


@pytest.fixture
def counted() -> Iterator[pytest.MonkeyPatch]:
    """Conversations are counted from 80 bytes on, in pieces of 48 characters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_texts, "PLAIN_BYTES", 80)
        patch.setattr(long_texts, "PIECE", 48)
        yield patch


@given(
    texts=st.lists(TEXTS, min_size=1, max_size=3).flatmap(
        lambda questions: st.tuples(*(st.tuples(st.just(each), TEXTS) for each in questions))
    ),
    max_length=st.integers(40, 900),
    too_long=st.sampled_from(["reject", "cut"]),
)
def test_counting_first_changes_no_token_no_note_and_no_reason(
    tools: Tools, texts: tuple[tuple[str, str], ...], max_length: int, too_long: str
) -> None:
    made = conversation(*(text for pair in texts for text in pair))
    limits = context(max_length, too_long)
    whole = outcome(made, tools, limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_texts, "PLAIN_BYTES", 80)
        patch.setattr(long_texts, "PIECE", 48)
        counted_first = outcome(made, tools, limits)
    if isinstance(whole, str) or isinstance(counted_first, str):
        assert counted_first == whole
        return
    assert np.array_equal(counted_first.encoded.ids, whole.encoded.ids)
    assert np.array_equal(counted_first.encoded.labels, whole.encoded.labels)
    assert set(counted_first.notes) | {"control_text"} == set(whole.notes) | {"control_text"}


def test_a_conversation_keeps_the_rounds_before_the_one_that_cannot_fit(tools: Tools, counted: object) -> None:
    made = conversation("What is it?", "A bus.", "And now?", "red " * 4000, "And then?", "Blue.")
    member = tokenize(0, made, tools, context(200, "reject"))
    short = tokenize(0, replace(made, turns=made.turns[:2]), tools, context(200, "reject"))
    assert np.array_equal(member.encoded.ids, short.encoded.ids)
    assert member.notes == ("rounds_cut",)
    assert member.conversation is made


@pytest.mark.parametrize("too_long", ["reject", "cut"])
def test_a_question_that_cannot_fit_is_a_reject_with_its_size(tools: Tools, counted: object, too_long: str) -> None:
    with pytest.raises(RejectError, match=r"has 16,006 bytes of text, .* limits.max_length is 100") as error:
        tokenize(0, conversation("red " * 4000, "A bus."), tools, context(100, too_long))
    assert error.value.reason == "too_long"


def test_only_a_little_of_a_text_that_cannot_fit_is_tokenized(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "PLAIN_BYTES", 80)
    monkeypatch.setattr(long_texts, "PIECE", 100)
    lengths: list[int] = []
    encode = tools.chat.tokenizer.encode

    def watched(pieces: list[str]) -> list[list[int]]:
        lengths.extend(map(len, pieces))
        return encode(pieces)

    monkeypatch.setattr(tools.chat.tokenizer, "encode", watched)
    assert outcome(conversation("Q?", "red bus " * 50_000), tools, context(100, "reject")) == "too_long"
    assert sum(lengths) < 2000


def test_definitions_of_tools_and_calls_count_as_text(tools: Tools, counted: object) -> None:
    limits = context(100, "cut")
    with_tools = conversation("Q?", "A.", tools=(json.dumps({"name": "f", "description": "red " * 4000}),))
    assert outcome(with_tools, tools, limits) == "too_long"
    call = ToolCall(name="f", arguments=json.dumps({"x": "red " * 4000}))
    calling = replace(conversation("Q?", "A."), turns=(Turn(role="user", parts=("Q?",)),))
    calling = replace(calling, turns=(*calling.turns, Turn(role="assistant", parts=(), tool_calls=(call,))))
    assert outcome(calling, tools, limits) == "too_long"


def test_white_space_around_a_text_is_not_counted(counted: object) -> None:
    tokenizer = dst.load_tokenizer(ROOT / "examples/tokenizer")
    made = conversation("Q?", " " * 5000 + "A bus." + "\n" * 5000)
    assert long_texts.beginning_that_may_fit(made, tokenizer, context(20, "reject")) is made


def test_a_text_of_100_mb_is_a_reject_and_no_process_takes_more_than_1_gb(tmp_path: Path) -> None:
    answer = "the quick brown fox jumps over a dog. " * (100_000_000 // 38)
    long = {"id": "long", "messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": answer}]}
    blend = chat_blend(tmp_path, [chat_record(0), long], limits={"max_reject_share": 0.9})
    command = ["-m", "preprocess.cli", "build", "--blend", str(blend), "--out", str(tmp_path / "out"), "--workers", "1"]
    script = (
        "import resource, subprocess, sys\n"
        f"done = subprocess.run([sys.executable, *{command!r}], check=True, capture_output=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"  # also of what the child waited for
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout.split()[-1]) * unit < 1_000_000_000
    assert [reject["reason"] for reject in rejects_of(tmp_path / "out")] == ["too_long"]
