"""The spool: conversations come back one by one as they went in, and what cannot be kept is a counted reject."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from preprocess.compiler.spool import Spool, reject_all, reject_line, write_spool
from preprocess.conversation import Conversation, Image, RecordSource, Reject, Turn

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=15)
ANY_TEXT = st.text(max_size=6) | st.just("\ud800")
IMAGES = st.builds(Image, name=TEXT, store=st.none() | st.integers(0, 20))
SOURCES = st.builds(RecordSource, file=TEXT, record=TEXT)
CONVERSATIONS = st.builds(
    Conversation,
    id=TEXT,
    turns=st.lists(
        st.builds(
            Turn,
            role=st.sampled_from(["system", "user", "assistant"]),
            parts=st.lists(TEXT | IMAGES, max_size=4).map(tuple),
        ),
        max_size=4,
    ).map(tuple),
    sources=st.lists(SOURCES, min_size=1, max_size=3).map(tuple),
    groups=st.lists(TEXT, max_size=3).map(tuple),
    official_split=st.sampled_from(["", "train", "val", "test"]),
    references=st.lists(TEXT, max_size=2).map(tuple),
    notes=st.lists(TEXT, max_size=2).map(tuple),
)
REJECTS = st.builds(Reject, reason=st.sampled_from(["no_answer", "bad_value"]), source=SOURCES, detail=TEXT)


def conversation(number: int, *, images: tuple[Image, ...] = (), text: str = "What?") -> Conversation:
    return Conversation(
        id=str(number),
        turns=(Turn(role="user", parts=(*images, text)), Turn(role="assistant", parts=("That.",))),
        sources=(RecordSource(file="a.json", record=str(number)), RecordSource(file="b.json", record=f"{number}'")),
        groups=tuple(f"g{image.name}" for image in images),
    )


def lines(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_bytes().splitlines()]


@given(st.lists(CONVERSATIONS | REJECTS, max_size=12))
def test_conversations_come_back_in_order_and_counts_add_up(stream: list[Conversation | Reject]) -> None:
    kept = [item for item in stream if isinstance(item, Conversation)]
    refused = [item for item in stream if isinstance(item, Reject)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts = write_spool(folder, "alpha", iter(stream))
        spool = Spool(folder)
        assert len(spool) == counts["conversations"] == len(kept)
        assert [spool[row] for row in range(len(spool))] == kept
        assert [spool[row] for row in reversed(range(len(spool)))] == kept[::-1]
        assert counts["records"] == sum(len(one.sources) for one in kept) + len(refused)
        assert sum(counts["rejects"].values()) == len(refused) == len(lines(folder))
        assert [line["reason"] for line in lines(folder)] == [reject.reason for reject in refused]
        assert spool.column("members").tolist() == [len(one.sources) for one in kept]
        assert spool.column("official_eval").tolist() == [one.official_split in ("val", "test") for one in kept]
        whole = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
        assert spool.column("hash").tolist() == [xxhash.xxh3_64_intdigest(line) for line in whole]


@given(st.lists(CONVERSATIONS, max_size=12), st.integers(1, 5))
def test_lists_are_flat_values_and_starts_whatever_the_batches(stream: list[Conversation], batch: int) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr("preprocess.compiler.spool._BATCH", batch)
        write_spool(Path(name), "alpha", iter(stream))
        spool = Spool(Path(name))
        assert spool.table.column("images").num_chunks == len(stream) // batch + 1
        for column, expected in [
            ("images", [[image.name for image in one.images] for one in stream]),
            ("stores", [[-1 if image.store is None else image.store for image in one.images] for one in stream]),
            ("groups", [[xxhash.xxh3_64_intdigest(group.encode()) for group in one.groups] for one in stream]),
        ]:
            values, starts = spool.lists(column)
            assert starts.dtype == np.int64
            assert len(starts) == len(stream) + 1
            assert starts[0] == 0
            assert [values[start:end].tolist() for start, end in itertools.pairwise(starts)] == expected
        assert [spool[row] for row in range(len(stream))] == stream


def test_an_empty_spool_has_typed_columns(tmp_path: Path) -> None:
    assert write_spool(tmp_path, "alpha", []) == {"records": 0, "conversations": 0, "rejects": {}}
    spool = Spool(tmp_path)
    assert len(spool) == 0
    assert spool.column("offset").tolist() == []
    for name, kind in [("groups", np.uint64), ("stores", np.int16)]:
        values, starts = spool.lists(name)
        assert values.dtype == np.dtype(kind)
        assert (values.tolist(), starts.tolist()) == ([], [0])


@pytest.mark.parametrize(
    "bad",
    [
        {"id": "\ud800"},
        {"turns": (Turn(role="user", parts=("\udfff",)),)},
        {"turns": (Turn(role="user", parts=(Image(name="\ud800.jpg"),)),)},
        {"groups": ("coco:\ud800",)},
        {"references": ("\ud800",)},
        {"notes": ("\ud800",)},
        {"sources": (RecordSource(file="\udc80.json", record="1"), RecordSource(file="b.json", record="\ud800"))},
    ],
    ids=lambda bad: next(iter(bad)),
)
def test_text_that_is_not_unicode_is_a_reject_for_every_source(tmp_path: Path, bad: dict[str, object]) -> None:
    fields = {name: getattr(conversation(1), name) for name in ("id", "turns", "sources", "groups", "references")}
    broken = Conversation(**{**fields, **bad})
    counts = write_spool(tmp_path, "alpha", [conversation(0), broken, conversation(2)])
    assert counts == {"records": 6, "conversations": 2, "rejects": {"bad_text": 2}}
    assert [one["reason"] for one in lines(tmp_path)] == ["bad_text", "bad_text"]
    assert all(one["dataset"] == "alpha" and one["detail"] for one in lines(tmp_path))
    assert [Spool(tmp_path)[row].id for row in range(2)] == ["0", "2"]
    if "sources" not in bad:
        assert [(one["file"], one["record"]) for one in lines(tmp_path)] == [("a.json", "1"), ("b.json", "1'")]
    else:
        assert [(one["file"], one["record"]) for one in lines(tmp_path)] == [
            ("\\udc80.json", "1"),
            ("b.json", "\\ud800"),
        ]


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT | st.text(min_size=500, max_size=600))
def test_any_reject_is_one_line_of_json(file: str, record: str, detail: str) -> None:
    line = reject_line(
        "alpha", Reject(reason="no_answer", source=RecordSource(file=file, record=record), detail=detail)
    )
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert list(json.loads(line)) == ["dataset", "reason", "file", "record", "detail"]
    assert len(json.loads(line)["detail"]) <= 500 * len("\\U00000000")


def test_a_conversation_that_fails_takes_all_its_records_with_it() -> None:
    rejects = list(reject_all(conversation(3), "image_missing", "3.jpg: not there"))
    assert [reject.source.record for reject in rejects] == ["3", "3'"]
    assert {reject.reason for reject in rejects} == {"image_missing"}


def test_the_same_stream_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_spool(tmp_path / name, "alpha", [conversation(1, images=(Image(name="1.jpg"),)), conversation(2)])
    for path in ("records.jsonl", "table.arrow", "rejects.jsonl"):
        assert (tmp_path / "first" / path).read_bytes() == (tmp_path / "second" / path).read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the pages of a mapping in /proc")
def test_pages_that_are_forgotten_take_no_memory_and_are_read_again(tmp_path: Path) -> None:
    write_spool(tmp_path, "mine", [Conversation(id=f"{number}", turns=(), sources=()) for number in range(20_000)])
    spool = Spool(tmp_path)
    hashes = spool.column("hash").copy()
    assert resident_bytes(tmp_path / "table.arrow") >= hashes.nbytes
    spool.forget_pages()
    assert resident_bytes(tmp_path / "table.arrow") == 0
    assert (spool.column("hash") == hashes).all()


def resident_bytes(path: Path) -> int:
    """Of the file's mappings in this process."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    _, _, after = text.partition(f"{path}\n")
    return sum(int(part.partition("\nRss:")[2].split()[0]) * 1024 for part in [after] if part)
