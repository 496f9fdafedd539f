"""Dataclasses from JSON data: what fits comes back as it was, and what does not is named with its path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import FieldError
from shards.typed_json import LARGEST, OPTIONAL, WHOLE, AtLeast, Keys, from_json, to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    name: str
    size: Annotated[int, AtLeast(1)]
    share: float
    on: bool
    kind: Literal["a", "b"]
    note: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    leaves: tuple[Leaf, ...]
    by_name: Mapping[str, Leaf]
    by_side: Annotated[Mapping[str, int], Keys(("left", "right"))]
    anything: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    size: int
    whole: Annotated[Mapping[str, Any], WHOLE]


LEAVES = st.builds(
    Leaf,
    name=st.text(),
    size=st.integers(1, LARGEST),
    share=st.floats(allow_nan=False),
    on=st.booleans(),
    kind=st.sampled_from(["a", "b"]),
    note=st.none() | st.text(),
)
TREES = st.builds(
    Tree,
    leaves=st.lists(LEAVES, max_size=3).map(tuple),
    by_name=st.dictionaries(st.text(), LEAVES, max_size=3),
    by_side=st.fixed_dictionaries({"left": st.integers(), "right": st.integers()}),
    anything=st.none() | st.integers() | st.lists(st.text()),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    size: int
    label: Annotated[str | None, OPTIONAL] = None


def test_an_optional_key_is_left_out_where_it_says_nothing() -> None:
    assert to_json(Labelled(size=1)) == {"size": 1}
    assert to_json(Labelled(size=1, label="")) == {"size": 1, "label": ""}
    for tree in ({"size": 1}, {"size": 1, "label": None}):
        assert from_json(Labelled, tree) == Labelled(size=1)
    with pytest.raises(FieldError, match=r"^label: got 3; expected text$"):
        from_json(Labelled, {"size": 1, "label": 3})


@settings(max_examples=30)
@given(TREES)
def test_what_was_written_is_read_again(tree: Tree) -> None:
    assert from_json(Tree, to_json(tree)) == tree


def leaf(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "size": 1, "share": 0.5, "on": True, "kind": "a", "note": None, **changes}


def tree(**changes: Any) -> dict[str, Any]:
    return {"leaves": [leaf()], "by_name": {"x": leaf()}, "by_side": {"left": 0, "right": 1}, "anything": 1, **changes}


WRONG = [
    (tree(leaves={}), "leaves: got {}; expected a list"),
    (tree(leaves=[leaf(), 3]), "leaves.1: got 3; expected an object"),
    (tree(leaves=[leaf(name=3)]), "leaves.0.name: got 3; expected text"),
    (tree(leaves=[leaf(size=0)]), "leaves.0.size: got 0; expected a whole number from 1 on"),
    (
        tree(leaves=[leaf(size=2**53 + 1)]),
        "leaves.0.size: got 9007199254740993; expected at most 9007199254740992 (2^53)",
    ),
    (tree(leaves=[leaf(size=True)]), "leaves.0.size: got True; expected a whole number from 1 on"),
    (tree(leaves=[leaf(size=1.0)]), "leaves.0.size: got 1.0; expected a whole number from 1 on"),
    (tree(by_name={"x": leaf(share="1")}), "by_name.x.share: got '1'; expected a number"),
    (tree(by_name={"x": leaf(share=True)}), "by_name.x.share: got True; expected a number"),
    (tree(by_name={"x": leaf(on=1)}), "by_name.x.on: got 1; expected true or false"),
    (tree(by_name={"x": leaf(kind="c")}), "by_name.x.kind: got 'c'; expected one of a, b"),
    (tree(by_name={"x": leaf(kind=["a"])}), "by_name.x.kind: got ['a']; expected one of a, b"),
    (tree(by_name={"x": leaf(note=3)}), "by_name.x.note: got 3; expected text"),
    (tree(by_side={"left": 0}), "by_side.right: missing; expected a whole number"),
    ({"leaves": []}, "by_name: missing; expected an object"),
    ([], "the document: got []; expected an object"),
    ("x" * 99, f"the document: got '{'x' * 56}...; expected an object"),
]


@pytest.mark.parametrize(("value", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_value_that_does_not_fit_is_named_with_its_path_and_what_was_expected(value: Any, words: str) -> None:
    with pytest.raises(FieldError) as caught:
        from_json(Tree, value)
    assert str(caught.value) == words


def test_unknown_keys_are_ignored_and_whole_numbers_are_numbers() -> None:
    got = from_json(Tree, tree(leaves=[leaf(share=1, more=2)], by_side={"left": 0, "right": 1, "more": 2}, more=2))
    assert got.leaves[0].share == 1.0
    assert got.by_side == {"left": 0, "right": 1}


def test_a_field_for_the_whole_keeps_every_key_and_is_what_is_written() -> None:
    document = {"size": 3, "more": {"x": [1]}}
    part = from_json(Part, document, "part")
    assert (part.size, part.whole) == (3, document)
    assert to_json((part, {"x": part})) == [document, {"x": document}]
