"""The text of a sample in pieces and turns: whole, in order, and as decoding everything at once gives it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import dst
from dst import IGNORE, ChatTokenizer, load_template, load_tokenizer
from preprocess.viewer.turns import openers_of, turns_of
from preprocess.views.sample_text import pieces_of, text_runs
from shards import Sample
from tests.support import text_tokenizers

TALK: list[dst.Message] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is  here, łódź 🦊?"}]},
    {"role": "assistant", "content": "A\n\nfox  <image> in a boat."},
    {"role": "user", "content": [{"type": "text", "text": " And here?"}, {"type": "image"}, {"type": "image"}]},
    {"role": "assistant", "content": "Nothing.", "trained": False},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Sure?"}]},
    {"role": "assistant", "content": "Yes"},
]
KINDS = ("byte", "byte_space", "metaspace", "legacy", "unigram")


def sample_of(ids: list[int], labels: list[int]) -> Sample:
    return Sample("shard", "key", memoryview(b"{}"), np.array([ids, labels], np.int32), ())


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dst.TextTokenizer:
    return load_tokenizer(text_tokenizers.make(request.param, tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(params=dst.BUILTIN)
def template(request: pytest.FixtureRequest) -> dst.Template:
    return load_template(request.param)


def test_pieces_are_the_whole_text_cut_where_its_kind_changes(
    tokenizer: dst.TextTokenizer, template: dst.Template
) -> None:
    encoded = ChatTokenizer(template, tokenizer).encode(TALK)
    sample = sample_of(list(encoded.ids), list(encoded.labels))
    pieces = pieces_of(sample, tokenizer)
    prefixes = ["", *(tokenizer.decode(sample.ids[: piece.end].tolist()) for piece in pieces)]
    assert [piece.text for piece in pieces] == [now[len(before) :] for before, now in pairwise(prefixes)]
    assert [piece.image for piece in pieces if piece.kind == "image"] == [0, 1, 2, 3]
    for piece in pieces:
        assert {label != IGNORE for label in sample.labels[piece.start : piece.end].tolist()} == {piece.trained}
        assert piece.kind == "text" or piece.end == piece.start + 1
    assert "".join(text for text, _ in text_runs(sample, tokenizer)[0]) == prefixes[-1]


def test_turns_are_the_same_text_and_know_who_speaks(tokenizer: dst.TextTokenizer, template: dst.Template) -> None:
    encoded = ChatTokenizer(template, tokenizer).encode(TALK)
    pieces = pieces_of(sample_of(list(encoded.ids), list(encoded.labels)), tokenizer)
    openers = openers_of(template, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)
    turns = turns_of(pieces, openers)
    assert "".join(piece.text for turn in turns for piece in turn.pieces) == "".join(piece.text for piece in pieces)
    assert all(turn.role == "assistant" for turn in turns if turn.trained)
    roles = [turn.role for turn in turns if turn.role != "context"]
    if template.name == "plain":  # its turns are lines alone
        assert roles == ["assistant", "assistant"]
    else:
        assert roles == ["user", "assistant"] * 3
        assert [turn.trained for turn in turns if turn.role == "assistant"] == [True, False, True]
        assert [sum(piece.kind == "image" for piece in turn.pieces) for turn in turns if turn.role == "user"] == [
            1,
            2,
            1,
        ]


def test_a_template_that_refuses_a_plain_talk_has_no_words_for_turns() -> None:
    answers = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    source = "{{ raise_exception('no') }}" + answers
    assert openers_of(dst.Template("mine", source), bos_token="", eos_token="</s>") == ()


def test_an_answer_that_ends_amid_a_character_is_shown(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(text_tokenizers.make("byte", tmp_path))
    ids = tokenizer.encode(["A fox 🦊"])[0]
    cut = [*ids[:-1], *tokenizer.encode(["</s>"])[0]]
    pieces = pieces_of(sample_of(cut, [IGNORE, *cut[1:]]), tokenizer)
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(cut)
