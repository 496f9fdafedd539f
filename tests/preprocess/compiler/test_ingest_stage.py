"""The reading of a build in pieces: it resumes, comes back from other nodes, and falls back to one task."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dst.common.progress import Silent
from preprocess.adapters.lookup import adapter_origin, find_adapter
from preprocess.compiler import ingest_pieces, ingest_stage
from preprocess.compiler.carried import Carrier, run_carried
from preprocess.compiler.ingest import Ingested, ingest_task
from preprocess.compiler.task_runner import TaskRunner
from tests.support.adapting import request_of
from tests.support.cut_datasets import (
    as_array,
    as_lines,
    chat_request,
    check_same,
    files_of_spool,
    read_in_pieces,
    read_whole,
    small_parts,
    talk,
)
from tests.support.extensions import ADAPTER, on_path, write_module
from tests.support.small_blends import build, files_of, image_blend


def test_the_cuts_do_not_depend_on_workers_and_a_whole_build_is_the_same(tmp_path: Path) -> None:
    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
        image_blend(tmp_path / name)
    build(tmp_path / "whole/blend.yaml")
    with small_parts(400):
        report = build(tmp_path / "pieces/blend.yaml")
        assert report.built_tasks > 6
        assert build(tmp_path / "pieces/blend.yaml").built_tasks == 0
    assert files_of(tmp_path / "pieces/build") == files_of(tmp_path / "whole/build")


def test_a_killed_reading_resumes_at_its_finished_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = chat_request(tmp_path / "mine", as_array([talk(number) for number in range(30)]), "chat.json")
    read: list[int] = []
    real = ingest_pieces.run_piece

    def dies(task: ingest_pieces.PieceTask) -> ingest_pieces.PieceResult:
        if task.number == 4:
            raise KeyboardInterrupt
        return real(task)

    def counted(task: ingest_pieces.PieceTask) -> ingest_pieces.PieceResult:
        read.append(task.number)
        return real(task)

    with small_parts(600):
        monkeypatch.setattr(ingest_stage, "run_piece", dies)
        with pytest.raises(KeyboardInterrupt):
            read_in_pieces(request, tmp_path)
        monkeypatch.setattr(ingest_stage, "run_piece", counted)
        monkeypatch.setattr(ingest_stage, "cut_file", None)  # the cuts are known
        ingested, _, _ = read_in_pieces(request, tmp_path)
    assert ingested.conversations == 30
    assert min(read) == 4


@pytest.mark.parametrize("files", [1, 9])
def test_an_adapter_that_reads_all_files_for_every_piece_is_called_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    """It says independent_records, but walks the annotations."""
    for _ in on_path(monkeypatch, tmp_path):
        write_module(
            tmp_path, "walker", ADAPTER.replace('licence="None."', 'licence="None.", independent_records=True')
        )
        root = tmp_path / "mine"
        root.mkdir()
        for file in range(files):
            (root / f"{file}.txt").write_text("".join(f"Line {line}.\n" for line in range(90 // files)))
        request = request_of(find_adapter("walker:ADAPTER"), root)
        with small_parts(200):
            ingested, _ = check_same(request, tmp_path, "walker:ADAPTER", extension=adapter_origin("walker:ADAPTER"))
        assert ingested.conversations == 90 // files * files


def test_a_file_that_changes_between_cutting_and_reading_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = as_array([talk(number) for number in range(30)])
    request = chat_request(tmp_path / "mine", data, "chat.json")
    real = ingest_pieces.run_piece

    def changed(task: ingest_pieces.PieceTask) -> ingest_pieces.PieceResult:
        (tmp_path / "mine/chat.json").write_bytes(data.replace(b"record 2", b"REcORD22"))
        return real(task)

    monkeypatch.setattr(ingest_stage, "run_piece", changed)
    with small_parts(600):
        ingested: Ingested = read_in_pieces(request, tmp_path)[0]
    assert "changed while it was read" in str(ingested.error)
    shutil.rmtree(tmp_path / "pieces")


@pytest.mark.parametrize("keep", ["reject", "keep"])
def test_pieces_come_back_from_nodes_that_do_not_share_the_build_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    monkeypatch.setenv("DSVL_CACHE", str(tmp_path / "node"))
    stored: list[bytes] = []

    def put(content: bytes) -> int:
        stored.append(content)
        return len(stored) - 1

    request = chat_request(
        tmp_path / "mine", as_lines([talk(number, id=f"r{number % 25}") for number in range(40)]), duplicate_ids=keep
    )
    carrier = Carrier(tmp_path / "build", tmp_path / "build/cache", put)

    def nodes(function: Any, tasks: Any, *_: Any) -> Iterator[tuple[int, Any]]:
        for index, task in enumerate(tasks):
            yield index, carrier.unpack(run_carried(function, carrier.pack(task), stored.__getitem__))

    engine: Any = nodes
    with small_parts(800):
        task = ingest_task("mine", "chat", request, tmp_path / "build/cache", None)
        (ingested,) = ingest_stage.read_datasets([task], TaskRunner(engine, 1, Silent()))
    expected, whole = read_whole(request, tmp_path)
    assert ingested == expected
    assert files_of_spool(task.folder) == files_of_spool(whole.folder)
