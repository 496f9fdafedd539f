"""The text of an answer, piece by piece: complete characters, no outer white space, nothing of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dst
from tests.support.small_blends import TOKENIZER
from trainer.inference.conversation import answer_text
from trainer.serving.answer_text import AnswerText

BPE = dst.load_tokenizer(TOKENIZER)
END = BPE.control["</s>"]


def ids_of(text: str) -> list[int]:
    return BPE.encode([text])[0]


def shown(tokens: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """The pieces that are not empty, and whether a stop string ended it."""
    text = AnswerText(BPE, stop)
    pieces = [*(text.add(token) for token in tokens), text.end()]
    return [piece for piece in pieces if piece], text.is_stopped


@settings(max_examples=60)
@given(st.text(alphabet=st.sampled_from("ab \n.é漢😀\u0301"), max_size=30), st.integers(0, 3))
def test_the_pieces_joined_are_the_answer_as_chat_reads_it(text: str, lost: int) -> None:
    tokens = ids_of(text)
    tokens = tokens[: len(tokens) - lost] if lost else tokens  # may end amid a character
    pieces, is_stopped = shown(tokens)
    assert "".join(pieces) == answer_text(BPE, tokens, END)
    assert not is_stopped


@settings(max_examples=150)
@given(
    st.text(alphabet="ab \n", max_size=24),
    st.lists(st.text(alphabet="ab \n", min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_an_answer_ends_before_the_first_stop_string_whatever_its_tokens_are(text: str, stop: list[str]) -> None:
    tokens = ids_of(text)
    whole = BPE.decode(tokens)
    pieces, is_stopped = shown(tokens, tuple(stop))
    starts = [whole.index(each) for each in stop if each in whole]
    assert is_stopped == bool(starts)
    assert "".join(pieces) == whole[: min(starts, default=len(whole))].strip()


def test_a_stop_string_across_tokens_is_held_back_until_it_is_none() -> None:
    tokens = ids_of("one END, two ENDING")
    assert len(tokens) > 8
    pieces, is_stopped = shown(tokens, ("ENDING",))
    assert ("".join(pieces), is_stopped) == ("one END, two", True)
    assert len(pieces) > 2, "it must come in pieces"


def test_white_space_is_shown_only_between_words() -> None:
    pieces, _ = shown(ids_of(" \n one \n two \n "))
    assert "".join(pieces) == "one \n two"
    assert all(piece == piece.rstrip() for piece in pieces)


@pytest.mark.parametrize("stop", ["\n", "\n\n"])
def test_an_answer_that_begins_with_a_stop_string_is_empty(stop: str) -> None:
    assert shown(ids_of("\n\none"), (stop,)) == ([], True)
