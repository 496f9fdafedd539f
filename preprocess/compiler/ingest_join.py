"""Join the pieces of a dataset: the result is the one that a single task would make of it.

Rules: pieces follow each other in the order of the files. Only digests of ids are in memory, about 40 bytes for each
conversation while they are compared; conversations are copied from file to file.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.adapters.base import Tally
from preprocess.compiler.ingest import Ingested, IngestTask, Reading, complete, failed
from preprocess.compiler.ingest_pieces import Ids, PieceTask, claimed_ids, read_piece
from preprocess.compiler.spool_copies import join_spools
from preprocess.errors import DataError
from preprocess.images.embedded import EmbeddedWriter
from shards.files import partial_path


def ids_taken_before(pieces: Sequence[PieceTask]) -> dict[int, Ids] | None:
    """Piece -> the ids that it claimed, but an earlier piece did too: it must be read again, with these taken.

    pieces: all of a dataset, finished. None if the pieces cannot be reconciled so, because the ids that a piece
    counted as taken are not.
    """
    claimed = [claimed_ids(piece) for piece in pieces]
    ids = np.concatenate(claimed)
    owners = np.repeat(np.arange(len(pieces), dtype=np.int32), [len(part) for part in claimed])
    del claimed
    order = np.argsort(ids, kind="stable")  # of equal ids, the one of the first piece comes first
    ids, owners = ids[order], owners[order]
    repeated = np.flatnonzero(ids[1:] == ids[:-1]) + 1
    again = {int(piece): ids[repeated[owners[repeated] == piece]] for piece in np.unique(owners[repeated])}
    if not any(len(piece.taken) for piece in pieces):
        return again
    is_first = np.ones(len(ids), np.bool_)
    is_first[repeated] = False
    first_ids, first_owners = ids[is_first], owners[is_first]
    for number, piece in enumerate(pieces):
        if not len(piece.taken):
            continue
        rows = np.minimum(np.searchsorted(first_ids, piece.taken), len(first_ids) - 1)
        if not len(first_ids) or ((first_ids[rows] != piece.taken) | (first_owners[rows] >= number)).any():
            return None
    return again


def join(task: IngestTask, pieces: Sequence[PieceTask], inputs: Sequence[Mapping[str, Any]]) -> Ingested:
    """Make the dataset's result of its finished pieces, in order; then they are removed. inputs: as in Ingested."""
    partial = partial_path(task.folder)
    try:
        partial.mkdir(parents=True)
        join_spools(partial, [piece.folder for piece in pieces])
        _join_embedded(partial, [piece.folder for piece in pieces])
        return complete(partial, task, _sum([read_piece(piece) for piece in pieces]), lambda: inputs)
    except DataError as error:
        return failed(task, error)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _join_embedded(folder: Path, pieces: Sequence[Path]) -> None:
    """Images inside records, each once, in the order of the records."""
    writer = EmbeddedWriter(folder)
    try:
        for piece in pieces:
            writer.keep_all(piece)
        writer.close()
    finally:
        writer.release()


def _sum(readings: Sequence[Reading]) -> Reading:
    counters: dict[str, Counter[str]] = {name: Counter() for name in ("rejects", "filtered", "official_files")}
    tally = Tally()
    for reading in readings:
        for name, counter in counters.items():
            for key, count in getattr(reading, name).items():
                counter[key] += count
        tally.add(reading.tally)
    return Reading(
        records=sum(reading.records for reading in readings),
        conversations=sum(reading.conversations for reading in readings),
        **counters,
        tally=tally,
    )
