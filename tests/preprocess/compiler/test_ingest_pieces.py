"""A dataset that is read in pieces comes out as from one task, whatever its records are and wherever it is cut."""

from __future__ import annotations

import base64
import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.compiler import ingest, ingest_pieces
from preprocess.filters.rules import Filter, Range
from tests.support.adapting import request_for
from tests.support.cut_datasets import (
    as_array,
    as_lines,
    chat_request,
    check_same,
    small_parts,
    talk,
    text_of,
)
from tests.support.small_blends import jpeg

QUIET = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=60
)
WORDS = st.sampled_from(
    [
        "Yes.",
        '"}, {"',
        "}]}, {",
        "\\",
        '\\"',
        "[[{",
        "é",
        "\U0001f600",
        "a\nb",
        "",
        "\ud800",
        "<image>",
        '\\\\"}, {"id": 1',
    ]
)
RECORDS: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["a", "b", "c", "#1", "a#3", 7, 2**70, None, ""]),
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": WORDS | st.integers()}),
            max_size=3,
        )
        | st.builds(lambda words: [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": words}], WORDS),
        "source": st.text(max_size=3) | st.floats(),
        "split": st.sampled_from(["train", "test", "other"]),
    },
) | st.sampled_from([{}, [], [{"id": 1}], None])
STYLES = st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}])


@QUIET
@given(
    records=st.lists(RECORDS, max_size=12),
    style=STYLES,
    part=st.sampled_from([1, 40, 150]),
    window=st.sampled_from([1, 7, 64, 4096]),
    keep=st.booleans(),
    around=st.sampled_from(
        [(b"", b""), (b"\xef\xbb\xbf", b""), (b"\n ", b" \r\n"), (b"", b"]"), (b"[", b"]"), (b"", b"x"), (b"[1,", b"]")]
    ),
)
def test_any_array_is_the_same_in_pieces(
    tmp_path: Path,
    records: list[Any],
    style: dict[str, Any],
    part: int,
    window: int,
    keep: bool,
    around: tuple[bytes, bytes],
) -> None:
    data = around[0] + as_array(records, **style) + around[1]
    request = chat_request(tmp_path / "mine", data, "chat.json", duplicate_ids="keep" if keep else "reject")
    with small_parts(part, window):
        check_same(request, tmp_path)


@QUIET
@given(
    lines=st.lists(
        RECORDS.map(text_of) | st.sampled_from([b"", b" \t", b"{", b"\x0b", b"\xff", b"[1]", b'{"id": 1}{']),
        max_size=14,
    ),
    end=st.sampled_from([b"\n", b"\r\n"]),
    last=st.booleans(),
    part=st.sampled_from([1, 40, 150]),
    window=st.sampled_from([1, 7, 64, 4096]),
    keep=st.booleans(),
    mark=st.booleans(),
)
def test_any_lines_are_the_same_in_pieces(
    tmp_path: Path, lines: list[bytes], end: bytes, last: bool, part: int, window: int, keep: bool, mark: bool
) -> None:
    data = b"\xef\xbb\xbf" * mark + end.join(lines) + end * last
    request = chat_request(tmp_path / "mine", data, duplicate_ids="keep" if keep else "reject")
    with small_parts(part, window):
        check_same(request, tmp_path)


@QUIET
@given(data=st.data())
def test_damage_anywhere_in_an_array_gives_the_same_result_or_error(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(as_array([talk(number) for number in range(6)]))
    place = data.draw(st.integers(0, len(whole) - 1))
    change = data.draw(st.sampled_from([b"", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b"5, ", b"\xff", b"NaN"]))
    whole[place : place + data.draw(st.integers(0, 2))] = change
    with small_parts(120, data.draw(st.sampled_from([5, 64, 4096]))):
        check_same(chat_request(tmp_path / "mine", bytes(whole), "chat.json"), tmp_path)


def test_a_dataset_of_several_files_is_read_in_pieces(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    for file in range(4):
        count = 20 if file == 2 else 3
        (root / f"part{file}.jsonl").write_bytes(as_lines([talk(number, origin=file) for number in range(count)]))
    (root / "test.json").write_bytes(as_array([talk(number) for number in range(30)]))
    (root / "packed.jsonl.gz").write_bytes(gzip.compress(as_lines([talk(number) for number in range(90)]), mtime=0))
    request = request_for("chat", root, annotations=("*",))
    with small_parts(700):
        ingested, tasks = check_same(request, tmp_path)
    assert ingested.conversations == 4 * 3 - 3 + 20 + 30 + 90
    assert ingested.official_files == {"test.json": 30}
    assert tasks > 10


@pytest.mark.parametrize("keep", ["reject", "keep"])
def test_ids_that_repeat_in_other_pieces_are_found(tmp_path: Path, keep: str) -> None:
    """Some of the same piece, of an earlier one, and names that renaming gives."""
    ids = ["a", "b", "a", "c", "b#1", "d", "b", "a#6", "a", "e", "b", "a", "#12", None, "b#10", "b"] * 2
    records = [talk(number, id=name) for number, name in enumerate(ids)]
    request = chat_request(tmp_path / "mine", as_lines(records), duplicate_ids=keep)
    for part in (1, 300, 700):
        with small_parts(part):
            ingested, _ = check_same(request, tmp_path)
    assert ingested.rejects.get("duplicate_id", 0) == (0 if keep == "keep" else len(ids) - len({*ids, 13, 29}) + 1)


def test_kept_ids_that_repeat_are_renamed_without_reading_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [talk(number, id=f'é"{number % 7}') for number in range(40)]
    request = chat_request(tmp_path / "mine", as_array(records), "chat.json", duplicate_ids="keep")
    real, read = ingest.read_into, []

    def counted(*arguments: Any, **more: Any) -> Any:
        read.append(more["parts"])
        return real(*arguments, **more)

    monkeypatch.setattr(ingest_pieces, "read_into", counted)
    with small_parts(700):
        ingested, tasks = check_same(request, tmp_path)
        assert ingested.conversations == 40
        assert len(read) == len({str(parts) for parts in read}) < tasks // 2 + 1
        read.clear()
        check_same(request, tmp_path, rules=Filter(answer_chars=Range(min=len("Answer 0 of record 10."))))
        assert len(read) > len({str(parts) for parts in read})  # the name of a dropped record is not known


def test_more_names_than_are_counted_come_out_in_their_order(tmp_path: Path) -> None:
    records = [talk(number, **{f"k{number % 7}": 1, f"k{3 * number}": 2, f"z{number}": 3}) for number in range(80)]
    with small_parts(600):
        ingested, tasks = check_same(chat_request(tmp_path / "mine", as_array(records), "chat.json"), tmp_path)
    assert len(ingested.ignored_keys) == 100
    assert tasks > 10


def test_filters_and_settings_that_no_record_has_are_the_same_in_pieces(tmp_path: Path) -> None:
    records = [talk(number, score=number % 5) for number in range(30)]
    request = chat_request(tmp_path / "mine", as_array(records), "chat.json")
    with small_parts(500):
        rules = Filter(rounds=Range(min=2))
        ingested, _ = check_same(request, tmp_path, rules=rules)
        assert ingested.filtered == {"rounds": 30}
        for changes in ({"filter_fields": ("scor",)}, {"keys": {"nobody": "messages"}}, {"keys": {"nobody": None}}):
            check_same(replace(request, **changes), tmp_path)


def test_images_inside_records_are_kept_once_in_the_order_of_the_records(tmp_path: Path) -> None:
    images = [base64.b64encode(jpeg(number)).decode() for number in (1, 2, 1, 3, 2, 4)]
    records = [talk(number, images=[image]) for number, image in enumerate(images)]
    for record in records:
        record["messages"][0]["content"] = "<image>\nWhat?"
    with small_parts(1000):
        ingested, _ = check_same(chat_request(tmp_path / "mine", as_lines(records)), tmp_path)
    assert ingested.conversations == len(images)


def test_llava_is_read_in_pieces(tmp_path: Path) -> None:
    records = [
        {"id": str(number % 17), "image": f"{number:012}.jpg", "conversations": [
            {"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "That."}]}
        for number in range(40)
    ]  # fmt: skip
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava/detail_23k.json").write_bytes(as_array(records))
    request = request_for("llava", tmp_path)
    with small_parts(900):
        ingested, tasks = check_same(request, tmp_path, "llava")
    assert ingested.rejects == {"duplicate_id": 23}
    assert tasks > 5
