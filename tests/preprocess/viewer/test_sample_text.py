"""The text of a sample in pieces and turns: whole, in order, and as decoding everything at once gives it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import dst
from dst import IGNORE, ChatTokenizer, load_template, load_tokenizer
from preprocess.viewer.turns import openers_of, turns_of
from preprocess.views.sample_text import pieces_of, record_texts, runs_of, whole_text
from shards import Sample, ShardError
from shards.format.branches import join_branches
from shards.format.records import records_of
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
    assert "".join(text for text, _ in runs_of(pieces)[0]) == prefixes[-1]


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


def test_the_beginning_of_records_is_cut_off_their_texts_and_a_divided_character_is_whole_in_each_branch(
    tmp_path: Path,
) -> None:
    tokenizer = load_tokenizer(text_tokenizers.make("byte", tmp_path))
    texts = ["Look: 🦊 eats</s>", "Look: 🦋 flies</s>"]
    records = [np.array(tokenizer.encode([text])[0], np.int32) for text in texts]
    beginning = int(np.flatnonzero(records[0][: len(records[1])] != records[1][: len(records[0])])[0])
    assert tokenizer.decode(records[0][:beginning].tolist()).endswith("\ufffd"), "the two characters begin alike"
    pairs = [np.stack([ids, np.where(np.arange(len(ids)) < beginning, IGNORE, ids)]) for ids in records]
    metadata = {
        "sources": [{"file": "a.json", "record": str(number)} for number in range(3)],
        "branches": [{"id": "one", "records": 1}, {"id": "two", "records": 2}],
        "references": [["fox"], []],
    }
    tokens = join_branches(pairs, beginning)
    shown = record_texts(Sample("shard", "key", memoryview(json.dumps(metadata).encode()), tokens, ()), tokenizer)
    assert [whole_text(each.sample, tokenizer) for each in shown] == [tokenizer.decode(ids.tolist()) for ids in records]
    assert ["".join(piece.text for piece in each.branch) for each in shown] == ["🦊 eats</s>", "🦋 flies</s>"]
    assert {"".join(piece.text for piece in each.beginning).rstrip("\ufffd") for each in shown} == {"Look: "}
    assert [(each.record.id, each.record.references) for each in shown] == [("one", ("fox",)), ("two", ())]
    assert shown[1].record.sources == (("a.json", "1"), ("a.json", "2"))


@pytest.mark.parametrize(
    ("branch_ids", "metadata", "problem"),
    [
        ([0, 1, 1], {}, "with two branches at least"),
        ([0, 2, 1], {}, "are not 0, 1, 2, ... in order"),
        ([0, 1, 2], {"sources": [], "branches": [{"id": "one", "records": 1}]}, "its metadata is not as FORMAT.md"),
        ([0, 1, 2], {"sources": []}, "KeyError"),
    ],
)
def test_branches_that_are_not_as_the_format_says_are_a_fault(
    branch_ids: list[int], metadata: dict[str, object], problem: str
) -> None:
    tokens = np.array([[9, 10, 11], [IGNORE, 10, 11], branch_ids], np.int32)
    with pytest.raises(ShardError, match=problem):
        records_of(Sample("shard", "key", memoryview(json.dumps(metadata).encode()), tokens, ()), image_id=5)
