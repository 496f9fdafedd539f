"""Base64 JSON: read as JSON reads it, and what is broken is named by line and column."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.errors import DataError
from preprocess.images import base64_json
from preprocess.images import index as store_index
from preprocess.images.stores import (
    open_store,
    prepare_store,
)
from tests.support.image_archives import (
    opened,
    reason,
)
from tests.support.paths import EXAMPLES

SPACE = st.text(alphabet=" \t\r\n", max_size=3)
HEX = st.sampled_from(["\\u00{:02x}", "\\u00{:02X}"])


@st.composite
def json_strings(draw: st.DrawFn, text: str) -> str:
    """One of the ways in which JSON may write a text."""
    out = []
    for character in text:
        ways = [json.dumps(character)[1:-1], json.dumps(character, ensure_ascii=False)[1:-1]]
        if character == "/":
            ways.append("\\/")
        if ord(character) < 256:
            ways.append(draw(HEX).format(ord(character)))
        weight = draw(st.integers(0, 9))
        out.append(ways[1] if weight < 8 else draw(st.sampled_from(ways)))
    return '"' + "".join(out) + '"'


KEYS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\\"/{}[],:'), min_size=1, max_size=8)
OTHERS = st.sampled_from(
    ["null", "-1.5e3", "true", "[]", '[{"a": "]"}, "\\"}"]', '{"meta": ["\\\\", {}]}', "[ [ ] ,\n 1 ]"]
)


@given(data=st.data(), window=st.integers(1, 40), images=st.dictionaries(KEYS, st.binary(max_size=60), max_size=5))
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture],
)
def test_any_spelling_of_a_json_object_is_read_as_json_reads_it(
    data: st.DataObject,
    window: int,
    images: dict[str, bytes],
    tmp_path: Path,
) -> None:
    members = []
    for key, image in images.items():
        if data.draw(st.integers(0, 5)) == 0:
            value = data.draw(OTHERS)
        else:
            value = data.draw(json_strings(base64.b64encode(image).decode()))
        space = [data.draw(SPACE) for _ in range(4)]
        members.append(f"{space[0]}{data.draw(json_strings(key))}{space[1]}:{space[2]}{value}{space[3]}")
    text = f"{data.draw(SPACE)}{{{','.join(members) or data.draw(SPACE)}}}{data.draw(SPACE)}"
    path = tmp_path / "store.json"
    path.write_bytes(text.encode())
    expected = json.loads(text)
    builder = store_index.ArchiveIndexBuilder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base64_json, "WINDOW_BYTES", window)
        if expected and not any(isinstance(value, str) for value in expected.values()):
            with pytest.raises(DataError, match="annotation file"):
                base64_json.index_base64_json(path, builder)
            return
        base64_json.index_base64_json(path, builder)
    builder.write(tmp_path / "index")
    index = store_index.ArchiveIndex(tmp_path / "index")
    assert len(index.keys) == len(expected)
    raw = path.read_bytes()
    for key, value in expected.items():
        entry = index.find(key)
        assert entry is not None
        packed = raw[entry.offset : entry.offset + entry.size]
        if isinstance(value, str):
            escaped = entry.packing == store_index.Packing.BASE64_ESCAPED
            assert base64_json.decode_base64(packed, escaped=escaped) == images[key]
            assert escaped == (b"\\" in packed)
        else:
            assert entry.packing == store_index.Packing.NOT_TEXT
            assert json.loads(packed) == value


BROKEN = [
    ('{"a": "AAAA"', 1, 13),
    ('{"a": "AAAA",', 1, 14),
    ('{"a": "AAAA",}', 1, 14),
    ('{"a": "AAAA" "b": "AAAA"}', 1, 14),
    ('{"a": "AAAA"}\n {', 2, 2),
    ('{\n  "a": "AAAA",\n  "b": "AA', 3, 8),
    ('{\n"a" "AAAA"}', 2, 5),
    ('{\n"ü\\x": "AAAA"}', 2, 3),
    ('{"ü": x}', 1, 7),
    ('{"ü": }', 1, 7),
    ('{"a": 01}', 1, 8),
    ('{"a": [1, {"b": ]}', 1, 17),
    ('{"a": [1, 2 3], "b": "AAAA"}', 1, 13),
    ('{"a\nb": "AAAA"}', 1, 4),
    ("{1: 2}", 1, 2),
    ("{'a': 'AAAA'}", 1, 2),
    ("{", 1, 2),
    ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", 1, 7),
    ('{"a": ' + "1" * 10_000 + "}", 1, 7),
]


@pytest.mark.parametrize(("text", "line", "column"), BROKEN)
@pytest.mark.parametrize("window", [1, 7, 1 << 20])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_broken_json_is_named_by_line_and_column(
    text: str, line: int, column: int, window: int, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if window == 1 and len(text) > 1000:
        pytest.skip("a read for every byte")
    monkeypatch.setattr(base64_json, "WINDOW_BYTES", window)
    (tmp_path / "a.json").write_text(text, encoding=encoding)
    with pytest.raises(DataError, match=rf"a\.json, line {line}, column {column}: broken"):
        prepare_store(tmp_path / "a.json", tmp_path / "cache")


def test_a_base64_json_cut_anywhere_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base64_json, "WINDOW_BYTES", 16)
    text = '{"a\\"é": "AAAA\\/AAA",\n "b": {"c": [1]}, "d": -1.5 }'.encode()
    for length in range(len(text)):
        (tmp_path / "a.json").write_bytes(text[:length])
        with pytest.raises(DataError):
            base64_json.index_base64_json(tmp_path / "a.json", store_index.ArchiveIndexBuilder())


def test_bytes_that_are_not_utf8_in_a_key_are_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"a\xff": "AAAA"}')
    with pytest.raises(DataError, match=r"column 4: .*not UTF-8"):
        prepare_store(tmp_path / "a.json", tmp_path / "cache")


@pytest.mark.parametrize(
    "value",
    [
        *('"data:image/jpeg,AAAA"', '"data:image/jpeg;base64"', '"AAAA\nAAAA"', '"ü"'),
        *(
            '"AAA"',
            '"AAAA AAAA"',
            '"AAAA\\nAAAA"',
            '"AA==AAAA"',
            '"A-_A"',
            '"\\q"',
            '"\\u00e9AAA"',
            '""',
            "7",
            "null",
            "{}",
        ),
    ],
)
def test_a_value_that_is_not_base64_is_one_unreadable_image(value: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f'{{"bad": {value}, "good": "AAAA"}}')
    store = opened(tmp_path / "a.json")
    assert reason(store, "bad") == "image_unreadable"
    assert store.read("good") == b"\0\0\0"


def test_an_annotation_file_is_not_taken_for_an_image_store(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"meta": {}, "data": {"k": {"instruction": "?"}}}')
    with pytest.raises(DataError, match="annotation file"):
        prepare_store(tmp_path / "a.json", tmp_path / "cache")


@pytest.mark.parametrize("name", ["SD", "SN", "TVC", "VST"])
def test_the_mimic_it_example_stores_are_read_as_json_reads_them(name: str, tmp_path: Path) -> None:
    path = EXAMPLES / "MIMIC-IT" / f"{name}.json"
    prepare_store(path, tmp_path)
    store = open_store(path, tmp_path)
    for key, text in json.loads(path.read_text()).items():
        assert store.read(key) == base64.b64decode(text)
