"""The first stage of a build: read all datasets, large ones in pieces that run on the engine at the same time.

Rule: the result does not depend on whether a dataset was cut. Whatever goes wrong with a piece, the dataset is read
whole by one task, which reports the error that there is, or finds that there is none.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from preprocess.adapters.base import FilePart
from preprocess.compiler.ingest import Ingested, IngestTask, finished, run_ingest
from preprocess.compiler.ingest_join import ids_taken_before, join
from preprocess.compiler.ingest_pieces import (
    DigestTask,
    PieceResult,
    PieceTask,
    cut_file,
    digest_tasks,
    finished_digests,
    finished_piece,
    is_large,
    may_be_cut,
    pieces_folder,
    pieces_of,
    run_digests,
    run_piece,
    size_of,
    with_taken,
)
from preprocess.compiler.sealed_json import read_sealed, write_sealed
from preprocess.compiler.task_runner import TaskRunner
from preprocess.compiler.worker_deaths import inherit_deaths

_CUTS = "cuts.json"
_ROUNDS = 4
"""Pieces that claim ids of earlier pieces are read again; renamed ids may do so once more."""

Task = IngestTask | PieceTask | DigestTask
Result = Ingested | PieceResult | list[dict[str, Any]]


def read_datasets(tasks: Sequence[IngestTask], run: TaskRunner) -> list[Ingested]:
    """The result of each dataset, in order; `error` is set where a dataset cannot be used."""
    in_pieces = _cut_large([task for task in tasks if finished(task) is None], run)
    work = {task.folder: _work(task, in_pieces.get(task.folder)) for task in tasks}
    every = [one for some in work.values() for one in some]
    results = iter(run("reading", run_reading, every, known=_known, weight=_weight, marker=_marker))
    ingested: dict[Path, Ingested | None] = {}
    for task in tasks:
        done = [next(results) for _ in work[task.folder]]
        pieces = in_pieces.get(task.folder)
        ingested[task.folder] = _only(done) if pieces is None else _joined(task, pieces, done, run)
    whole = [task for task in tasks if ingested[task.folder] is None]
    ingested.update(
        zip(
            (task.folder for task in whole),
            run("reading", run_ingest, whole, known=finished, marker=_marker),
            strict=True,
        )
    )
    return [result for task in tasks if (result := ingested[task.folder]) is not None]


def _cut_large(tasks: Sequence[IngestTask], run: TaskRunner) -> dict[Path, list[PieceTask]]:
    """The pieces of the datasets that are large enough, by the folders of their results."""
    pieces: dict[Path, list[PieceTask]] = {}
    large = [task for task in tasks if may_be_cut(task)]
    known = {task.folder: _read_cuts(task) for task in large}
    paths = {
        path for task in large if known[task.folder] is None for path in task.request.annotations if is_large(path)
    }
    cuts = dict(zip(sorted(paths), run.every_time("cutting", cut_file, sorted(paths)), strict=True))
    for task in large:
        parts = known[task.folder] or [cuts.get(path) for path in task.request.annotations]
        made = pieces_of(task, parts)
        if len(made) == 1:
            continue
        pieces[task.folder] = made
        if known[task.folder] is None:
            pieces_folder(task).mkdir(parents=True, exist_ok=True)
            rows = [None if some is None else [_as_row(part) for part in some] for some in parts]
            write_sealed(pieces_folder(task) / _CUTS, rows)
    return pieces


def _read_cuts(task: IngestTask) -> list[list[FilePart] | None] | None:
    """The cuts of an earlier run."""
    try:
        rows = read_sealed(pieces_folder(task) / _CUTS)
        return [
            None if some is None else [FilePart(path=path, **row) for row in some]
            for path, some in zip(task.request.annotations, rows, strict=True)
        ]
    except (OSError, ValueError, TypeError):
        return None


def _as_row(part: FilePart) -> dict[str, Any]:
    return {field.name: getattr(part, field.name) for field in fields(part) if field.name != "path"}


def _work(task: IngestTask, pieces: list[PieceTask] | None) -> Sequence[Task]:
    """What the engine runs for a dataset: the digests first, since a large file takes as long as several pieces."""
    return [task] if pieces is None else [*digest_tasks(task), *pieces]


def _only(results: Sequence[Result]) -> Ingested:
    (result,) = results
    assert isinstance(result, Ingested)
    return result


def _joined(task: IngestTask, pieces: list[PieceTask], results: Sequence[Result], run: TaskRunner) -> Ingested | None:
    """The result of finished pieces, which are removed; None if the dataset must be read whole."""
    inputs = [entry for result in results if isinstance(result, list) for entry in result]
    is_sound = not any(result.error for result in results if isinstance(result, PieceResult))
    ingested = join(task, made, inputs) if is_sound and (made := _reconciled(pieces, run)) else None
    if ingested is None:
        inherit_deaths(task.marker, [piece.marker for piece in pieces])
    shutil.rmtree(pieces_folder(task), ignore_errors=True)
    return ingested


def _reconciled(pieces: list[PieceTask], run: TaskRunner) -> list[PieceTask]:
    """The pieces once none claims an id of an earlier one; empty if that cannot be had."""
    for _ in range(_ROUNDS):
        taken = ids_taken_before(pieces)
        if not taken:
            return pieces if taken is not None else []
        pieces = [with_taken(piece, taken[piece.number]) if piece.number in taken else piece for piece in pieces]
        again = [pieces[number] for number in taken]
        results = run("repeated ids", run_piece, again, known=finished_piece, marker=_marker)
        if any(result.error for result in results):
            return []
    return []


def run_reading(task: Task) -> Result:
    match task:
        case IngestTask():
            return run_ingest(task)
        case PieceTask():
            return run_piece(task)
        case DigestTask():
            return run_digests(task)


def _known(task: Task) -> Result | None:
    match task:
        case IngestTask():
            return finished(task)
        case PieceTask():
            return finished_piece(task)
        case DigestTask():
            return finished_digests(task)


def _marker(task: Task) -> Path:
    return task.marker


def _weight(task: Task) -> int:
    """For progress: megabytes of records to read, and at least 1."""
    match task:
        case IngestTask():
            return 1 + sum(map(size_of, task.request.annotations)) // 2**20
        case PieceTask():
            return 1 + sum(map(size_of, task.parts)) // 2**20
        case DigestTask():
            return 1
