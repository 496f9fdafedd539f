"""The short ways of plain records give what the general ways give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.adapters.base import Request
from preprocess.adapters.datasets import llava
from preprocess.adapters.parsing import exact_json, fields, media_tags, messages, turns
from preprocess.adapters.parsing.exact_json import has_long_number, loads
from preprocess.adapters.parsing.fields import image_at, image_groups
from preprocess.adapters.parsing.media_tags import TagRules
from preprocess.adapters.parsing.parts import parts_slots
from preprocess.conversation import Image
from preprocess.errors import RejectError

QUIET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
PIECES = st.lists(
    st.sampled_from(
        ["<image>", "\n", "\r\n", "What?", " ", "é", "<", "<video>", "<image_1>", "<IMAGE>", "\ud800", "\\"]
    ),
    max_size=4,
).map("".join)
PARTS = st.none() | st.lists(
    st.builds(lambda words: {"type": "text", "text": words}, PIECES) | st.just({"type": "image"}), max_size=3
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"from": st.sampled_from(["human", "gpt", "system", "tool", "nobody"]), "value": PIECES | PARTS},
        optional={"weight": st.sampled_from([0, 1])},
    ),
    max_size=5,
) | st.lists(st.tuples(PIECES, PIECES), min_size=1, max_size=3).map(
    lambda rounds: [
        {"from": who, "value": words} for pair in rounds for who, words in zip(("human", "gpt"), pair, strict=True)
    ]
)
NAMES = st.lists(
    st.sampled_from(["a", "B.jpg", ".", "..", "/", "x y", "é", ":", "C:", "\\", "-", "data:", "~"]), max_size=6
).map("".join)


def outcome(build: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return build(*arguments)
    except RejectError as bad:
        return bad.reason, bad.detail


def without_short_ways(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(turns, "_plain", lambda *_: ())
    patch.setattr(fields, "SHORTEST", 0)
    patch.setattr(media_tags, "MARKER", "")
    patch.setattr(messages, "_content", general_content)


def general_content(value: Any, role: Any, has_images: bool, rules: TagRules, request: Request) -> Any:
    if type(value) is list:
        return parts_slots(value, role, has_images, rules, request)
    return media_tags.slots(value, role, has_images, rules)


@QUIET
@given(
    items=TURNS,
    images=st.lists(st.sampled_from(["1.jpg", "x/2.jpg", "../3.jpg", ""]), max_size=2),
    most=st.integers(0, 2),
)
def test_any_record_gives_the_same_turns_or_the_same_reject(items: list[Any], images: list[str], most: int) -> None:
    request = Request(root=Path("/data"), annotations=(), images=(), max_images=most)
    rules = TagRules.of(request)
    record = {"conversations": items, "image": images}
    short = outcome(llava.rounds, request, record, rules)
    with pytest.MonkeyPatch.context() as patch:
        without_short_ways(patch)
        assert short == outcome(llava.rounds, request, record, rules)


@QUIET
@given(NAMES)
def test_any_path_gives_the_same_image_or_the_same_reject(name: str) -> None:
    request = Request(root=Path("/data"), annotations=(), images=(Path("/data/x"), Path("/data/y")))
    short = outcome(image_at, name, request)
    with pytest.MonkeyPatch.context() as patch:
        without_short_ways(patch)
        assert short == outcome(image_at, name, request)


def test_the_groups_of_one_image_are_those_of_a_list(tmp_path: Path) -> None:
    request = Request(root=tmp_path, annotations=(), images=(Path("/x"), Path("/y")))
    for image in (Image(name="a.jpg"), Image(name="a.jpg", store=1), Image(name="b/000000000042.jpg")):
        assert image_groups(request, [image]) == image_groups(request, [image, image])


NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([2**63, -(2**63) - 1, 2**64 - 1, 10**18, -0.0])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.sampled_from(["\ud800", "1" * 30]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=10,
)


def parsed(build: Callable[[Any], Any], data: Any) -> str:
    """As text, since NaN is not equal to itself and 1 is equal to 1.0."""
    try:
        return repr(build(data))
    except (ValueError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"


@QUIET
@given(value=VALUES, data=st.data())
def test_json_is_parsed_as_by_json(value: Any, data: st.DataObject) -> None:
    text = bytearray(json.dumps(value, ensure_ascii=data.draw(st.booleans())).encode("utf-8", "surrogatepass"))
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + 1] = data.draw(
            st.sampled_from([b"", b"1e999", b"\xff", b"00", b",", b"-", b"\t", b"[", b"\\"])
        )
    assert parsed(loads, bytes(text)) == parsed(lambda text: json.loads(text.decode()), bytes(text))


@pytest.mark.parametrize("depth", [300, exact_json.DEEP, 990, 1_020, 5_000])
def test_deep_nesting_is_parsed_or_refused_as_by_json(depth: int) -> None:
    text = b"[" * depth + b"]" * depth
    assert parsed(loads, text)[:30] == parsed(lambda text: json.loads(text.decode()), text)[:30]


@QUIET
@given(st.integers(10, 30), st.integers(0, 7), st.booleans())
def test_a_long_number_is_found_at_any_place(digits: int, place: int, large: bool) -> None:
    text = b"x" * place + b"7" * digits + b"x"
    assert has_long_number(text + b" " * 5000 * large) == (digits >= 19)
