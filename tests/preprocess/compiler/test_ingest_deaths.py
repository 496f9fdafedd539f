"""A worker that dies while it reads annotations costs one record, in every container, and is named by it."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dst.common.progress import Silent
from preprocess.adapters.base import Request
from preprocess.adapters.parsing import json_stream, record_files, record_parts, record_tables, record_text
from preprocess.adapters.parsing.exact_json import loads
from preprocess.adapters.parsing.record_text import kind_of
from preprocess.compiler import ingest_stage, worker_deaths
from preprocess.compiler.ingest import Ingested, ingest_task
from preprocess.compiler.ingest_deaths import reading_text
from preprocess.compiler.ingest_stage import read_datasets
from preprocess.compiler.sealed_json import read_sealed
from preprocess.compiler.task_runner import TaskRunner
from preprocess.compiler.worker_deaths import deadly_items, deaths_file
from preprocess.containers.tables import parquet_batches
from preprocess.conversation_lines import encode
from tests.support.adapting import request_for
from tests.support.cut_datasets import as_array, as_lines, chat_request, small_parts, talk
from tests.support.deadly_records import DEADLY, die, mortal_engine, run_fragile_reading
from tests.support.small_blends import build, chat_blend, chat_record, rejects_of

pytestmark = pytest.mark.usefixtures("no_hang")

LAST, BAD = 11, 7
"""The number of the last record, and of the deadly one"""


def records() -> list[dict[str, Any]]:
    return [talk(number, note=DEADLY) if number == BAD else talk(number) for number in range(LAST + 1)]


def flat(number: int) -> dict[str, str]:
    answer = DEADLY if number == BAD else f"Answer {number}."
    return {"id": f"r{number}", "question": f"Question {number}?", "answer": answer}


def as_csv() -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["id", "question", "answer"])
    writer.writeheader()
    writer.writerows(map(flat, range(LAST + 1)))
    return out.getvalue().encode()


def as_table() -> pa.Table:
    return pa.Table.from_pylist([flat(number) for number in range(LAST + 1)])


def as_parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(as_table(), out, row_group_size=5)
    return out.getvalue()


def as_arrow() -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_file(out, as_table().schema) as writer:
        writer.write_table(as_table(), max_chunksize=5)
    return out.getvalue()


def as_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number in range(LAST + 1):
            data = json.dumps(flat(number)).encode()
            member = tarfile.TarInfo(f"{number:02}.json")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


CONTAINERS: dict[str, Callable[[], bytes]] = {
    "chat.jsonl": lambda: as_lines(records()),
    "chat.json": lambda: as_array(records()),
    "object.json": lambda: json.dumps({"version": 1, "data": records()}).encode(),
    "keyed.json": lambda: json.dumps({str(number): record for number, record in enumerate(records())}).encode(),
    "chat.csv": as_csv,
    "chat.parquet": as_parquet,
    "chat.arrow": as_arrow,
    "chat.tar": as_tar,
}


@pytest.fixture
def dies_when_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is deadly for what parses it."""

    def fragile(parse: Callable[..., Any]) -> Callable[..., Any]:
        def parsed(*arguments: Any, **options: Any) -> Any:
            result = parse(*arguments, **options)
            if DEADLY in str(result):
                die()
            return result

        return parsed

    monkeypatch.setattr(json_stream, "_DECODER", SimpleNamespace(raw_decode=fragile(json.JSONDecoder().raw_decode)))
    for module in (record_text, record_parts):
        monkeypatch.setattr(module, "loads", fragile(loads))
    monkeypatch.setattr(record_tables, "_values", fragile(record_tables._values))


@pytest.fixture
def dies_when_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is deadly for what works on its conversation."""

    def fragile(conversation: Any) -> bytes:
        if conversation.id.endswith(f"r{BAD}") or conversation.id.endswith(f"/{BAD}"):
            die()
        return encode(conversation)

    monkeypatch.setattr("preprocess.compiler.spool.encode", fragile)


def read(request: Request, folder: Path) -> tuple[Ingested, list[dict[str, str]]]:
    task = ingest_task("mine", "chat", request, folder / "cache", None)
    (ingested,) = read_datasets([task], TaskRunner(mortal_engine, 1, Silent()))
    path = task.folder / "rejects.jsonl"
    return ingested, [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


@pytest.mark.parametrize("part_bytes", [10**9, 400], ids=["whole", "in pieces"])
@pytest.mark.parametrize("name", [name for name in CONTAINERS if name != "chat.csv"])
def test_a_record_that_kills_its_parser_is_left_out_and_all_others_are_read(
    tmp_path: Path, dies_when_parsed: None, name: str, part_bytes: int
) -> None:
    with small_parts(part_bytes):
        ingested, rejects = read(chat_request(tmp_path / "mine", CONTAINERS[name](), name), tmp_path)
    assert (ingested.error, ingested.records, ingested.conversations) == (None, LAST + 1, LAST)
    ((reason, file, record),) = [(reject["reason"], reject["file"], reject["record"]) for reject in rejects]
    assert (reason, file, record) == ("worker_died", name, str(BAD))
    assert (
        "died 2 times while it worked on this record (it crashed); to try it again, remove .cache/ingest/mine-"
        in (rejects[0]["detail"])
    )


@pytest.mark.parametrize("part_bytes", [10**9, 400], ids=["whole", "in pieces"])
@pytest.mark.parametrize("name", CONTAINERS)
def test_a_record_that_kills_what_works_on_it_is_left_out_after_two_deaths(
    tmp_path: Path, dies_when_written: None, name: str, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_deaths, "MOST_DEATHS", 2)
    with small_parts(part_bytes):
        ingested, (reject,) = read(chat_request(tmp_path / "mine", CONTAINERS[name](), name), tmp_path)
    assert (ingested.records, ingested.conversations) == (LAST + 1, LAST)
    assert (reject["reason"], reject["record"]) == ("worker_died", str(BAD))


def test_the_first_line_of_a_file_is_left_out_like_any_other(tmp_path: Path, dies_when_parsed: None) -> None:
    data = as_lines([talk(0, note=DEADLY), talk(1)])
    ingested, (reject,) = read(chat_request(tmp_path / "mine", data, "chat.json"), tmp_path)
    assert (ingested.error, ingested.conversations, reject["record"]) == (None, 1, "0")


def test_rows_that_cannot_be_decoded_end_their_row_group_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fragile(*arguments: Any) -> Iterator[Any]:
        for batch in parquet_batches(*arguments):
            if DEADLY in str(batch.to_pylist()):
                die()
            yield batch

    monkeypatch.setattr("preprocess.adapters.parsing.record_tables.parquet_batches", fragile)
    ingested, rejects = read(chat_request(tmp_path / "mine", as_parquet(), "chat.parquet"), tmp_path)
    assert ingested.error is None
    assert [reject["record"] for reject in rejects] == ["5", "6", "7", "8", "9"]  # the second group of five
    assert ingested.conversations == LAST + 1 - 5


def test_a_record_that_cannot_be_left_out_is_named_and_the_next_run_does_not_die_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = csv.reader
    deaths: list[str] = []

    class Reader:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._rows = reader(*arguments, **options)

        line_num = property(lambda self: self._rows.line_num)

        def __iter__(self) -> Iterator[list[str]]:
            return self

        def __next__(self) -> list[str]:
            row = next(self._rows)
            if DEADLY in str(row):
                deaths.append("died")
                die()
            return row

    monkeypatch.setattr(csv, "reader", Reader)
    request = chat_request(tmp_path / "mine", as_csv(), "chat.csv")
    for _ in range(2):
        error = read(request, tmp_path)[0].error
        assert error is not None
        assert "chat.csv: the worker process died 3 times at record 7 of chat.csv, also while it left it out" in error
        assert "\n" not in error
    assert len(deaths) == 3


@pytest.mark.parametrize("part_bytes", [10**9, 200], ids=["whole", "in pieces"])
def test_a_file_at_whose_beginning_workers_die_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    def fragile(path: Path) -> Any:
        form = real(path)
        if path.name == "b.json":
            die()
        return form

    real = record_files.json_form
    monkeypatch.setattr(record_files, "json_form", fragile)
    for name in "abc":
        chat_request(tmp_path / "mine", as_array([talk(ord(name))]), f"{name}.json")
    with small_parts(part_bytes):
        error = read(request_for("chat", tmp_path / "mine", annotations=("*",)), tmp_path)[0].error
    assert error is not None
    assert "mine/b.json: the worker process died 2 times at the beginning or the end of this file (it crashed)" in error
    assert "\n" not in error


def test_a_piece_that_died_and_then_fails_leaves_its_deaths_to_the_task_that_reads_the_whole(
    tmp_path: Path, dies_when_parsed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = chat_request(tmp_path / "mine", CONTAINERS["chat.jsonl"](), "chat.jsonl")
    task = ingest_task("mine", "chat", request, tmp_path / "cache", None)
    monkeypatch.setattr(ingest_stage, "join", lambda *arguments: None)
    with small_parts(400):
        (ingested,) = read_datasets([task], TaskRunner(mortal_engine, 1, Silent()))
    assert ingested.conversations == LAST
    (item,) = deadly_items(task.marker)
    assert reading_text(request, item) == f"record {BAD} of chat.jsonl"
    assert len(read_sealed(deaths_file(task.marker))) == 2


def test_two_deadly_arrays_of_one_file_are_not_mistaken_for_each_other(tmp_path: Path, dies_when_parsed: None) -> None:
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(4)]
    captions = [{"id": number, "image_id": number, "caption": f"Words {number}."} for number in range(4)]
    captions[2]["caption"] = DEADLY
    root = tmp_path / "mine"
    root.mkdir()
    (root / "captions_x.json").write_text(json.dumps({"images": images, "annotations": captions}))
    request = request_for("coco_caption", root, annotations=("*.json",))
    task = ingest_task("mine", "coco_caption", request, tmp_path / "cache", None)
    (ingested,) = read_datasets([task], TaskRunner(mortal_engine, 1, Silent()))
    assert ingested.error is None
    assert ingested.conversations == 3
    assert ingested.rejects["worker_died"] == 1


def test_a_build_whose_workers_die_at_a_line_has_it_as_a_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_stage, "run_reading", run_fragile_reading)
    lines = [chat_record(number) for number in range(6)]
    lines[3]["note"] = DEADLY
    blend = chat_blend(tmp_path, lines, limits={"max_reject_share": 0.5})
    report = build(blend, workers=1)
    assert report.datasets["mine"].members == 5
    (reject,) = rejects_of(tmp_path / "build")
    assert (reject["reason"], reject["file"], reject["record"]) == ("worker_died", "chat.jsonl", "3")
    assert kind_of(tmp_path / "mine/chat.jsonl") == "text"  # outside of a build nothing is noted
    for path in (tmp_path / "build").glob(reject["detail"].rpartition("remove ")[2]):
        assert path.is_dir()
