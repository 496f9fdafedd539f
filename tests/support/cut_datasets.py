"""Datasets read in pieces of a few records, next to the same dataset read by one task."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dst.common.progress import Silent
from preprocess.adapters.base import Request
from preprocess.adapters.parsing import json_borders, record_cuts
from preprocess.compiler.ingest import Ingested, IngestTask, ingest_task, run_ingest
from preprocess.compiler.ingest_stage import read_datasets
from preprocess.compiler.task_runner import TaskRunner
from tests.support.adapting import request_for
from tests.support.in_process import in_this_process
from tests.support.small_blends import chat_record


@contextlib.contextmanager
def small_parts(part_bytes: int, window: int = 1 << 18) -> Iterator[None]:
    """Within it, files of more than 1.5 times `part_bytes` are cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_cuts, "PART_BYTES", part_bytes)
        patch.setattr(record_cuts, "TAR_SAMPLES", 3)
        patch.setattr(record_cuts, "_WINDOW", window)
        patch.setattr(json_borders, "_WINDOW", window)
        yield


def read_whole(request: Request, folder: Path, adapter: str = "chat", **settings: Any) -> tuple[Ingested, IngestTask]:
    """By one task."""
    task = ingest_task("mine", adapter, request, folder / "whole", settings.pop("first", None), **settings)
    return run_ingest(task), task


def read_in_pieces(
    request: Request, folder: Path, adapter: str = "chat", **settings: Any
) -> tuple[Ingested, IngestTask, TaskRunner]:
    """By the stage of a build, with the tasks that it ran."""
    task = ingest_task("mine", adapter, request, folder / "pieces", settings.pop("first", None), **settings)
    run = TaskRunner(in_this_process, 1, Silent())
    (ingested,) = read_datasets([task], run)
    return ingested, task, run


def check_same(request: Request, folder: Path, adapter: str = "chat", **settings: Any) -> tuple[Ingested, int]:
    """Read a dataset in both ways and compare all that comes out. Returns the result, and the tasks of the pieces."""
    for name in ("whole", "pieces"):
        shutil.rmtree(folder / name, ignore_errors=True)
    expected, whole = read_whole(request, folder, adapter, **settings)
    actual, pieces, run = read_in_pieces(request, folder, adapter, **settings)
    assert actual == expected
    assert list(actual.forms) == list(expected.forms)
    assert list(actual.ignored_keys) == list(expected.ignored_keys)
    assert list(actual.official_files) == list(expected.official_files)
    assert list(actual.filtered) == list(expected.filtered)
    if expected.error is None:
        assert files_of_spool(pieces.folder) == files_of_spool(whole.folder)
        assert table_of(pieces.folder).equals(table_of(whole.folder))
        assert [path.name for path in pieces.folder.parent.iterdir()] == [pieces.folder.name]
    return actual, run.built


def files_of_spool(folder: Path) -> dict[str, bytes]:
    """All but the table, which is compared by rows, and the seal of the result, which covers the table's bytes."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "table.arrow"}
    return {**files, "done.json": files["done.json"].partition(b"\n")[0]}


def table_of(folder: Path) -> pa.Table:
    with pa.memory_map(str(folder / "table.arrow")) as source:
        return pa.ipc.open_file(source).read_all().combine_chunks()


def text_of(record: object, **style: Any) -> bytes:
    return json.dumps(record, **style).encode("utf-8", "surrogatepass")


def chat_request(root: Path, data: bytes, name: str = "chat.jsonl", **options: Any) -> Any:
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(data)
    return request_for("chat", root, annotations=("*",), **options)


def talk(number: int, **more: Any) -> dict[str, Any]:
    return {**chat_record(number), **more}


def as_array(records: Sequence[object], **style: Any) -> bytes:
    return text_of(list(records), **style)


def as_lines(records: Sequence[object]) -> bytes:
    return b"".join(text_of(record) + b"\n" for record in records)
