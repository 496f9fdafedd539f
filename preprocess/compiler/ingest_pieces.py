"""A dataset in pieces: each is a task that reads some neighbouring records, and keeps what it made of them.

Rules: the pieces of a dataset depend on its files alone. What a piece makes is what one task would make of the same
records, except that the task does not know the ids of the pieces before it: it reports those that it claimed, and
ingest_join.py finds the ones that came twice. A finished piece is never read again.

    <ingest>/<dataset>-<key>-pieces/cuts.json        the parts of the files
                                    /digests-00.json  digests of the files
                                    /00007-<key>/     a spool, piece.json, and of ids: digests and records
"""

from __future__ import annotations

import os
import shutil
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from preprocess.adapters.base import AnnotationFile, FilePart, Tally
from preprocess.adapters.lookup import find_adapter
from preprocess.adapters.parsing import record_cuts
from preprocess.compiler.ingest import IngestTask, Reading, content_key, read_into, sealed_files
from preprocess.compiler.ingest_renames import DroppedRecord, rename
from preprocess.compiler.input_digests import described
from preprocess.compiler.sealed_json import read_sealed, write_sealed
from preprocess.errors import DataError
from preprocess.images.embedded import FILES as EMBEDDED
from shards.files import partial_path

_DONE = "piece.json"
_IDS, _RECORDS = "ids.bin", "records-of-ids.bin"
_NO_IDS: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)

Ids = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PieceTask:
    """Some parts of a dataset's files. taken: sorted digests of ids of earlier pieces, of which this one has some."""

    dataset: IngestTask
    number: int
    parts: tuple[AnnotationFile, ...]
    taken: Ids
    unrenamed: Path | None
    """The piece as it was read when no id was taken, if only names of conversations can differ from it"""
    key: str

    @property
    def folder(self) -> Path:
        return pieces_folder(self.dataset) / f"{self.number:05d}-{self.key[:16]}"

    @property
    def marker(self) -> Path:
        """Names the files in which deaths of workers are noted, whatever ids are taken."""
        return pieces_folder(self.dataset) / f"{self.number:05d}.json"

    def item_text(self, item: int) -> str:
        return self.dataset.item_text(item)


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestTask:
    """The digests of some neighbouring files of a dataset."""

    dataset: IngestTask
    number: int
    files: tuple[Path, ...]

    @property
    def marker(self) -> Path:
        """The file of its result."""
        return pieces_folder(self.dataset) / f"digests-{self.number:02d}.json"


@dataclass(frozen=True, slots=True)
class PieceResult:
    """error: why the piece cannot be used; then the dataset is read whole, and its own error is reported."""

    error: str | None = None


def pieces_folder(task: IngestTask) -> Path:
    return task.folder.with_name(f"{task.folder.name}-pieces")


def may_be_cut(task: IngestTask) -> bool:
    """Whether the dataset is large, and its adapter can read it in pieces. With `first`, few records are read."""
    if task.first is not None or not find_adapter(task.adapter).independent_records:
        return False
    return sum(map(size_of, task.request.annotations)) >= record_cuts.least_bytes()


def is_large(path: Path) -> bool:
    """Whether a file may be cut."""
    return size_of(path) >= record_cuts.least_bytes()


def cut_file(path: Path) -> list[FilePart] | None:
    """The parts of a file, as a task. None for one that is read whole, or cannot be read at all."""
    try:
        return record_cuts.cut(path)
    except (DataError, OSError, ValueError):
        return None


def pieces_of(task: IngestTask, cuts: Sequence[Sequence[FilePart] | None]) -> list[PieceTask]:
    """The pieces of a dataset. cuts: of each annotation file. Small files come together in a piece."""
    groups: list[list[AnnotationFile]] = []
    filled = 0
    for path, parts in zip(task.request.annotations, cuts, strict=True):
        for part in parts or (path,):
            size = size_of(part)
            if not groups or filled + size > record_cuts.PART_BYTES:
                groups.append([])
                filled = 0
            groups[-1].append(part)
            filled += size
    return [_piece(task, number, tuple(parts)) for number, parts in enumerate(groups)]


def with_taken(task: PieceTask, taken: Ids) -> PieceTask:
    """The same piece, if some ids are taken."""
    keeps = task.dataset.request.options.get("duplicate_ids") == "keep"
    unrenamed = (task.unrenamed or task.folder) if keeps else None
    return _piece(task.dataset, task.number, task.parts, np.union1d(task.taken, taken), unrenamed)


def run_piece(task: PieceTask) -> PieceResult:
    """Read the piece into its folder. Raises OSError or MemoryError if another try may succeed."""
    partial = partial_path(task.folder)
    try:
        partial.mkdir(parents=True)
        reading = _renamed(task, partial) or _read(task, partial)
        write_sealed(partial / _DONE, _as_json(reading), _described(partial), owner=task.folder.name)
        shutil.rmtree(task.folder, ignore_errors=True)
        os.replace(partial, task.folder)
    except DataError as error:
        return PieceResult(str(error))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return PieceResult()


def _read(task: PieceTask, folder: Path) -> Reading:
    ids = _PieceIds(task.taken)
    reading = read_into(folder, task.dataset, task.marker, parts=task.parts, ids=ids)
    (folder / _IDS).write_bytes(ids.claimed.tobytes())
    (folder / _RECORDS).write_bytes(ids.records.tobytes())
    return reading


def _renamed(task: PieceTask, folder: Path) -> Reading | None:
    """The piece with other names. None if it must be read; what this left in the folder is then written again."""
    if task.unrenamed is None:
        return None
    claimed, records = (np.fromfile(task.unrenamed / name, np.uint64) for name in (_IDS, _RECORDS))
    try:
        rename(task.unrenamed, folder, claimed, records, task.taken).tofile(folder / _IDS)
    except DroppedRecord:
        return None
    for name in EMBEDDED:
        if (task.unrenamed / name).is_file():
            shutil.copyfile(task.unrenamed / name, folder / name)
    return _reading(task.unrenamed)


def _described(folder: Path) -> list[Path]:
    claimed = (folder / name for name in (_IDS, _RECORDS))
    return [*sealed_files(folder), *(path for path in claimed if path.is_file())]


def read_piece(task: PieceTask) -> Reading:
    """The numbers of a finished piece. Raises OSError, ValueError or KeyError if there is none."""
    return _reading(task.folder)


def _reading(folder: Path) -> Reading:
    fields = read_sealed(folder / _DONE, _described(folder), owner=folder.name)
    tally = fields.pop("tally")
    return Reading(
        **fields,
        tally=Tally(
            forms=Counter(tally["forms"]),
            ignored_keys=Counter(tally["ignored_keys"]),
            keys_found={*tally["keys_found"]},
            roles_found={*tally["roles_found"]},
            fields_found={*tally["fields_found"]},
            possible_fields=dict.fromkeys(tally["possible_fields"]),
        ),
    )


def claimed_ids(task: PieceTask) -> Ids:
    """The digests of the ids that a finished piece claimed, each once."""
    return np.fromfile(task.folder / _IDS, np.uint64)


def finished_piece(task: PieceTask) -> PieceResult | None:
    try:
        read_piece(task)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return PieceResult()


def digest_tasks(task: IngestTask) -> list[DigestTask]:
    """A large file is a task; small ones come together."""
    groups: list[list[Path]] = []
    filled = 0
    for path in task.request.annotations:
        if not groups or filled + size_of(path) > record_cuts.PART_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(path)
        filled += size_of(path)
    return [DigestTask(dataset=task, number=number, files=tuple(files)) for number, files in enumerate(groups)]


def run_digests(task: DigestTask) -> list[dict[str, Any]]:
    """{"file", "size", "sha256"} of each file. Raises DataError for one that cannot be read."""
    result = [described(task.dataset.request, path) for path in task.files]
    task.marker.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(task.marker, result)
    return result


def finished_digests(task: DigestTask) -> list[dict[str, Any]] | None:
    try:
        result: list[dict[str, Any]] = read_sealed(task.marker)
    except (OSError, ValueError):
        return None
    return result


class _PieceIds:
    """An IdSet that knows the ids of earlier pieces, and remembers its own."""

    def __init__(self, taken: Ids) -> None:
        self._seen = {*taken.tolist()}
        self.claimed, self.records = array("Q"), array("Q")

    def __contains__(self, digest: int) -> bool:
        return digest in self._seen

    def add(self, digest: int, record: int) -> None:
        self._seen.add(digest)
        self.claimed.append(digest)
        self.records.append(record)


def _piece(
    task: IngestTask,
    number: int,
    parts: tuple[AnnotationFile, ...],
    taken: Ids = _NO_IDS,
    unrenamed: Path | None = None,
) -> PieceTask:
    source_file = task.request.source_file
    facts = [
        [source_file(part.path), part.start, part.end] if isinstance(part, FilePart) else [source_file(part)]
        for part in parts
    ]
    key = content_key({"dataset": task.key, "parts": facts, "taken": xxhash.xxh3_128_hexdigest(taken.tobytes())})
    return PieceTask(dataset=task, number=number, parts=parts, taken=taken, unrenamed=unrenamed, key=key)


def _as_json(reading: Reading) -> dict[str, Any]:
    tally = reading.tally
    return {
        "records": reading.records,
        "conversations": reading.conversations,
        "rejects": dict(reading.rejects),
        "filtered": dict(reading.filtered),
        "official_files": dict(reading.official_files),
        "tally": {
            "forms": tally.forms,
            "ignored_keys": tally.ignored_keys,
            "keys_found": sorted(tally.keys_found),
            "roles_found": sorted(tally.roles_found),
            "fields_found": sorted(tally.fields_found),
            "possible_fields": list(tally.possible_fields),
        },
    }


def size_of(file: AnnotationFile) -> int:
    """Bytes of the file, or about those of a part."""
    if isinstance(file, Path):
        return 0 if file.is_dir() else file.stat().st_size
    return file.end - file.start if file.form in ("array", "lines") else record_cuts.PART_BYTES
