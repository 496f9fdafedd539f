"""The streaming reader gives what json gives, says where a document is broken, and never takes a part for the whole."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from preprocess.adapters.parsing import json_stream
from preprocess.adapters.parsing.json_stream import array_items, first_character, object_items, outline
from preprocess.adapters.parsing.record_watch import RecordWatch, watched_item, watching
from preprocess.adapters.parsing.unreadable import UnreadableRecord
from preprocess.errors import DataError

WINDOWS = (1, 2, 7, 64, 1 << 20)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["\ud800", "\U0001f600", '"\\', "1.5e-7", 1.5e300, -0.0]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
STYLES = st.sampled_from(
    [
        {},
        {"indent": 1},
        {"indent": "\t"},
        {"separators": (",", ":")},
        {"separators": (" , ", " : ")},
        {"ensure_ascii": False},
    ]
)
BROKEN = [
    '[1, 2,, 3]', "[1, 2", "[1 2]", "[1, 2]]", "[1, 2] x", "[1,\n 2,\n tru]", '["a\nb"]', '["a', '["\\x"]', '["\\u12"]',
    "[1.]", "[1e]", "[-]", "[01]", '[{"a" 1}]', '[{"a": 1,}]', "[,]", "[1,]", "", " ",
    "[[[", "[nul", "[1}", '[{"a"}]',
]  # fmt: skip
QUIET = settings(
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture], deadline=None
)


@pytest.fixture(params=WINDOWS)
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(json_stream, "_WINDOW", request.param)
    return int(request.param)


def written(folder: Path, text: str) -> Path:
    path = folder / "document.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def dumped(value: Any, style: dict[str, Any]) -> str:
    text = json.dumps(value, **style)
    # A lone surrogate has no UTF-8; in a file it can only stand as an escape.
    return (
        text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if not style.get("ensure_ascii", True)
        else text
    )


def same(one: Any, two: Any) -> bool:
    return repr(one) == repr(two)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
@given(values=st.lists(VALUES, max_size=6), style=STYLES)
@example(values=[1.5, 12, 1e22, -0.25, math.inf, -math.inf], style={})
@settings(parent=QUIET, max_examples=60)
def test_an_array_is_read_as_json_reads_it_whatever_the_window(
    tmp_path: Path, size: int, values: list[Any], style: dict[str, Any]
) -> None:
    text = dumped(values, style)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_WINDOW", size)
        assert same(list(array_items(written(tmp_path, text))), json.loads(text))


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@given(
    before=st.dictionaries(st.text(max_size=3), VALUES, max_size=3), expected=st.lists(VALUES, max_size=3), style=STYLES
)
@settings(parent=QUIET, max_examples=60)
def test_an_array_or_object_behind_keys_is_found_past_its_neighbours(
    tmp_path: Path, size: int, before: dict[str, Any], expected: list[Any], style: dict[str, Any]
) -> None:
    members = {str(number): value for number, value in enumerate(expected)}
    inner = {**before, "expected": expected, "members": members}
    path = written(tmp_path, text := dumped({**before, "outer": inner, "after": before}, style))
    read = json.loads(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_WINDOW", size)
        assert same(list(array_items(path, "outer", "expected")), read["outer"]["expected"])
        assert same(dict(object_items(path, "outer", "members")), read["outer"]["members"])
        keys = [(key, opening) for key, opening, _ in outline(path)]
    assert [key for key, _ in keys] == list(read)
    assert all((opening == "{") is isinstance(read[key], dict) for key, opening in keys)


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_document_is_refused_at_the_place_where_json_refuses_it(
    tmp_path: Path, window: int, text: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DataError) as failed:
        list(array_items(path))
    assert str(failed.value).startswith(f"{path}, line ")
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    if expected.value.msg.startswith(("Expecting value", "Unterminated", "Invalid", "Expecting ':'")) and text.strip():
        assert f"line {expected.value.lineno}, column {expected.value.colno}: " in str(failed.value)


def test_line_and_column_count_from_one_across_windows(tmp_path: Path, window: int) -> None:
    path = written(tmp_path, '[\n  {"a": 1},\r\n  {"b": oops}\n]')
    with pytest.raises(DataError, match=r"line 3, column 9: broken JSON: Expecting value"):
        list(array_items(path))


@pytest.mark.parametrize(
    "text", ['[1, "two", {"three": [3.5, null]}, true]', '{"a": {"x": [1]}, "data": [1.5, "b", {}], "z": {"y": [2]}}']
)
def test_a_file_cut_at_any_byte_never_passes_for_a_whole_one(tmp_path: Path, window: int, text: str) -> None:
    keys = ("data",) if text.startswith("{") else ()
    assert list(array_items(written(tmp_path, text), *keys))
    for length in range(len(text)):
        with pytest.raises(DataError):
            list(array_items(written(tmp_path, text[:length]), *keys))


def test_a_byte_order_mark_is_not_part_of_the_document(tmp_path: Path, window: int) -> None:
    path = tmp_path / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf [1]")
    assert list(array_items(path)) == [1]
    assert first_character(path) == "["


def test_repeated_keys_are_all_given(tmp_path: Path) -> None:
    assert list(object_items(written(tmp_path, '{"a": 1, "a": 2}'))) == [("a", 1), ("a", 2)]


def test_the_outline_of_what_is_not_an_object_is_empty(tmp_path: Path) -> None:
    assert list(outline(written(tmp_path, "[1]"))) == []
    assert list(outline(written(tmp_path, ""))) == []
    assert first_character(tmp_path / "document.json") == ""


def test_the_outline_can_be_left_before_the_file_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, '{"kind": "x", "questions": [1, 2, oops]}')
    assert list(itertools.islice(outline(path), 2)) == [("kind", '"', "x"), ("questions", "[", None)]
    with pytest.raises(DataError, match="column 35"):
        list(outline(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'["\xff"]', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "4300"),
        (b'{"a": 1}', "has no key data"),
        (b'{"data": 3}', "got a number, expected an array of records"),
    ],
)
def test_what_cannot_be_read_at_all_names_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as failed:
        list(array_items(path, *(("data",) if content.startswith(b"{") else ())))
    assert str(failed.value).startswith(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json: cannot be read"):
        list(array_items(tmp_path / "absent.json"))


@pytest.mark.parametrize("size", [1, 2, 7, 64])
@given(values=st.lists(VALUES, min_size=1, max_size=4), style=STYLES)
@example(values=[{"a": '\\"]}\\', "b": [["{", '"']]}, [1]], style={})
@settings(parent=QUIET, max_examples=60)
def test_a_value_that_is_passed_over_ends_where_it_ends_when_it_is_parsed(
    tmp_path_factory: pytest.TempPathFactory, size: int, values: list[Any], style: dict[str, Any]
) -> None:
    path = written(tmp_path_factory.mktemp("json"), dumped(values, style))
    notes: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_WINDOW", size)
        with watching(RecordWatch([path], notes.append, {0: "it is deadly"}, is_careful=True)):
            first, *others = array_items(path)
    assert first == UnreadableRecord(reason="worker_died", detail="it is deadly")
    assert same(others, json.loads(path.read_text(encoding="utf-8"))[1:])
    assert [watched_item(note).record for note in notes[1:]] == [*range(len(values)), None]


@pytest.mark.parametrize("text", ['[{"a": [1, 2', '[{"a": "b', '[{"a": "b\\'])
def test_a_file_that_ends_in_a_value_that_is_passed_over_is_refused(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    watch = RecordWatch([path], lambda note: None, {0: "it is deadly"}, is_careful=True)
    with watching(watch), pytest.raises(DataError, match="broken JSON: the file ends within a"):
        list(array_items(path))
