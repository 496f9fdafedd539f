"""Spools that are made of others: several in a row, and one with other lines.

Rule: lines are copied from file to file, and never parsed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import xxhash

from preprocess.compiler.spool import SCHEMA, sync_files


def join_spools(folder: Path, parts: Sequence[Path]) -> None:
    """Write the spool of all conversations and rejects of others, in order."""
    offset = 0
    with (
        (folder / "records.jsonl").open("wb") as lines,
        (folder / "rejects.jsonl").open("wb") as refused,
        pa.OSFile(str(folder / "table.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as table,
    ):
        for part in parts:
            with pa.memory_map(str(part / "table.arrow")) as source:
                for batch in pa.ipc.open_file(source).read_all().to_batches():
                    moved = pa.array(batch.column("offset").to_numpy() + np.uint64(offset))
                    table.write_batch(pa.RecordBatch.from_arrays([moved, *batch.columns[1:]], schema=SCHEMA))
            _append(part / "rejects.jsonl", refused)
            offset += _append(part / "records.jsonl", lines)
        table.write_batch(pa.RecordBatch.from_pylist([], SCHEMA))
    sync_files(folder)


def replace_lines(folder: Path, spool: Path, lines: Iterable[bytes]) -> None:
    """Write a spool with other lines for the same conversations, and the same rejects."""
    with pa.memory_map(str(spool / "table.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    sizes, hashes = [], []
    with (folder / "records.jsonl").open("wb", buffering=1 << 20) as out:
        for line in lines:
            out.write(line)
            sizes.append(len(line))
            hashes.append(xxhash.xxh3_64_intdigest(line))
    ends = np.cumsum(sizes, dtype=np.uint64)
    columns = {"offset": ends - np.array(sizes, np.uint64), "size": sizes, "hash": hashes}
    for index, (name, values) in enumerate(columns.items()):
        field = SCHEMA.field(name)
        table = table.set_column(index, field, pa.chunked_array([pa.array(values, field.type)], field.type))
    with pa.OSFile(str(folder / "table.arrow"), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(table)
    shutil.copyfile(spool / "rejects.jsonl", folder / "rejects.jsonl")
    sync_files(folder)


def _append(path: Path, out: BinaryIO) -> int:
    """Copy a file to the end of another. Returns its size."""
    with path.open("rb") as file:
        shutil.copyfileobj(file, out, 1 << 20)
        return file.tell()
