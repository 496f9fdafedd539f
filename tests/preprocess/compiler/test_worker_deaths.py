"""A worker that dies in a task costs one record, never the build, and never the same two deaths again."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from preprocess.compiler import build as build_module
from preprocess.compiler import engines, worker_deaths
from preprocess.compiler.engines import process_engine
from preprocess.compiler.fingerprints import FingerprintTask, run_fingerprint
from preprocess.compiler.run_task import run_task
from preprocess.compiler.sealed_json import write_sealed
from preprocess.compiler.worker_deaths import WorkerDeaths, deadly_items, item_now, noting, task_name
from preprocess.errors import DataError
from tests.support.deadly_images import KILLS, KILLS_ONCE, run_fragile_task, with_mark
from tests.support.engine_tasks import end_worker, kill_yourself_at_two, process_of
from tests.support.small_blends import build, chat_blend, chat_record, files_of, image_blend, jpeg, rejects_of

pytestmark = pytest.mark.usefixtures("no_hang")


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "run_task", run_fragile_task)


def mark(blend: Path, numbers: range | tuple[int, ...], text: bytes) -> None:
    for number in numbers:
        (blend.parent / f"mine/{number}.jpg").write_bytes(with_mark(jpeg(number), text))


@pytest.mark.parametrize("dataset", [{}, {"share": 4}, {"concat": 2}], ids=str)
def test_a_record_at_which_workers_die_twice_is_a_reject_and_all_others_are_samples(
    tmp_path: Path, fragile: None, dataset: dict[str, int]
) -> None:
    blend = image_blend(tmp_path, count=6, limits={"max_reject_share": 0.5}, dataset=dataset)
    mark(blend, (5,), KILLS)
    report = build(blend, workers=1)
    assert report.datasets["mine"].members == 5
    (reject,) = rejects_of(tmp_path / "build")
    assert (reject["reason"], reject["record"]) == ("worker_died", "r5")
    assert "died 2 times while it worked on this record (the system killed it" in reject["detail"]


def test_a_build_remembers_the_reject_until_its_task_is_removed(tmp_path: Path, fragile: None) -> None:
    blend = image_blend(tmp_path, count=6, limits={"max_reject_share": 0.5})
    mark(blend, (5,), KILLS)
    build(blend, workers=1)
    first = files_of(tmp_path / "build")
    (reject,) = rejects_of(tmp_path / "build")
    again = build(blend)
    assert (again.built_tasks, files_of(tmp_path / "build")) == (0, first)
    for path in (tmp_path / "build").glob(reject["detail"].rpartition("remove ")[2]):
        path.unlink()
    with mock.patch.object(build_module, "run_task", run_task):
        assert build(blend).datasets["mine"].members == 6


def test_records_that_share_a_deadly_image_are_rejects_together(tmp_path: Path, fragile: None) -> None:
    image_blend(tmp_path, count=4)
    records = [chat_record(number, images=[f"{number // 3}.jpg"]) for number in range(12)]
    blend = chat_blend(tmp_path, records, dataset={"share": 4}, limits={"max_reject_share": 0.5})
    mark(blend, (1,), KILLS)
    build(blend, workers=1)
    rejects = rejects_of(tmp_path / "build")
    assert {(reject["reason"], reject["record"]) for reject in rejects} == {
        ("worker_died", f"r{number}") for number in (3, 4, 5)
    }


def test_a_worker_that_dies_once_costs_no_record_and_changes_no_byte(tmp_path: Path, fragile: None) -> None:
    blend = image_blend(tmp_path)
    mark(blend, (5,), KILLS_ONCE + os.fsencode(tmp_path / "died") + b"\n")
    build(blend, workers=2)
    assert (tmp_path / "died").exists()
    assert rejects_of(tmp_path / "build") == []
    build(blend, out=tmp_path / "whole")
    assert files_of(tmp_path / "build") == files_of(tmp_path / "whole")


def test_too_many_deaths_end_the_build_and_the_next_run_begins_behind_them(
    tmp_path: Path, fragile: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_deaths, "MOST_DEATHS", 3)
    blend = image_blend(tmp_path, limits={"max_reject_share": 0.5})
    mark(blend, (4, 5, 6), KILLS)
    with pytest.raises(DataError, match=r"^4 worker processes died in this build, .*fewer --workers[^\n]*$"):
        build(blend, workers=1)
    build(blend, workers=1)  # needs two of the six deaths
    assert [reject["record"] for reject in rejects_of(tmp_path / "build")] == ["r4", "r5", "r6"]


def test_a_task_whose_worker_died_is_tried_again_alone_when_all_others_are_done() -> None:
    tries: list[object] = []

    def forgives(task: object, cause: str) -> bool:
        tries.append(task)
        return len(tries) == 1

    results: list[int] = []
    with pytest.raises(DataError, match="died in task 2"):
        results += (index for index, _ in process_engine(kill_yourself_at_two, range(9), 2, forgives=forgives))
    assert tries == [2, 2]


def test_workers_that_died_are_replaced_as_long_as_tasks_wait() -> None:
    found = list(process_engine(process_of, range(20), 2, forgives=lambda task, cause: True))
    assert sorted(index for index, _ in found) == list(range(20))


def test_a_death_outside_of_any_item_is_forgiven_once(tmp_path: Path) -> None:
    deaths = WorkerDeaths()
    assert deaths(tmp_path / "task.json", "exit code 1")
    assert not deaths(tmp_path / "task.json", "exit code 1")
    assert deaths(tmp_path / "other.json", "exit code 1")


def test_a_note_names_the_last_item_and_is_removed_when_the_task_ends(tmp_path: Path) -> None:
    marker = tmp_path / "tasks/one.json"

    def died_at(item: int) -> None:
        with noting(marker) as note:
            note(item)
            left = next(marker.parent.glob(".*.partial")).read_bytes()
        (marker.parent / ".one.note.partial").write_bytes(left)  # as after a death

    deaths = WorkerDeaths()
    for item in (3, 8, 3, -4):
        died_at(item)
        assert deaths(marker, f"cause {item}")
    assert deadly_items(marker) == {3: "cause 3"}
    assert [path.name for path in marker.parent.iterdir()] == ["one.deaths.json"]


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}", b"[[1]]", b'[["x", 1]]', b"[" * 100_000])
def test_a_damaged_list_of_deaths_is_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "one.deaths.json").write_bytes(content)
    assert deadly_items(tmp_path / "one.json") == {}


def test_a_flipped_bit_in_a_list_of_deaths_makes_no_other_record_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "one.deaths.json"
    write_sealed(path, [[8, "x"], [8, "x"]])
    assert deadly_items(tmp_path / "one.json") == {8: "x"}
    path.write_bytes(path.read_bytes().replace(b"8", b"9"))
    assert deadly_items(tmp_path / "one.json") == {}


def test_a_fingerprint_leaves_out_an_image_at_which_workers_died(tmp_path: Path) -> None:
    blend = image_blend(tmp_path, count=3)
    build(blend)
    cache = tmp_path / "build/.cache"
    (spool,) = (cache / "ingest").iterdir()
    task = FingerprintTask(
        dataset="mine",
        spool=spool,
        stores=(tmp_path / "mine",),
        cache=cache,
        positions=np.arange(3),
        level="bytes",
        max_pixels=10**6,
        key="0" * 64,
    )
    whole = run_fingerprint(task)
    write_sealed(task.marker.with_name(f"{task.marker.stem}.deaths.json"), [[1, "x"], [1, "x"]])
    without = run_fingerprint(task)
    assert without[1] == np.zeros(1, without.dtype)[0]
    assert (without[[0, 2]] == whole[[0, 2]]).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads states of processes in /proc")
def test_a_stopped_worker_is_reported_with_its_process_and_task_and_the_run_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "QUIET_S", 0.3)
    run = process_engine(process_of, range(3), 1)
    _, process = next(run)
    os.kill(process, signal.SIGSTOP)
    timer = threading.Timer(1.5, os.kill, (process, signal.SIGCONT))
    timer.start()
    assert len(list(run)) == 2
    timer.join()
    assert f"still at work: process {process}, stopped (task " in capsys.readouterr().err


def test_a_death_where_nothing_is_noted_names_the_dataset_or_the_file_of_the_task(tmp_path: Path) -> None:
    assert task_name(tmp_path) == f", {tmp_path}"
    task = SimpleNamespace(dataset="mine")
    assert task_name(task) == task_name(SimpleNamespace(dataset=task)) == ", dataset mine"
    assert task_name(3) == ""
    with pytest.raises(DataError, match=r"^a worker process died in task 0, /a/file \(exit code 3\)"):
        list(process_engine(end_worker, [Path("/a/file")], 1))


def test_an_item_is_named_while_a_task_works_on_it(tmp_path: Path) -> None:
    task = SimpleNamespace(marker=tmp_path / "one.json")
    assert item_now(task) == ""
    with noting(task.marker) as note:
        note(5)
        assert item_now(task) == ", at item 5"
        note(-9)
        assert item_now(task) == ", at item 7"
    assert item_now(task) == item_now("text") == ""
