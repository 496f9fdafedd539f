"""A dataset's conversations between the adapter and the compiler: JSON lines, and a memory-mapped table of offsets.

Rule: any conversation can be read by its number, so a task reads any subset and holds one at a time.

    records.jsonl   one conversation per line
    table.arrow     offset, size, hash of the line; members (number of its records); image names, stores and
                    frames; group hashes; whether it is in an official val or test split
    rejects.jsonl   the adapter's rejects
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import xxhash

from preprocess.compiler.split_assignment import mix
from preprocess.conversation import Conversation, Image, Reject
from preprocess.conversation_lines import decode, encode
from preprocess.errors import DataError

RECORDS, TABLE = "records.jsonl", "table.arrow"

_BATCH = 16384
_BLOCK_ROWS = 65536
SCHEMA = pa.schema(
    {
        "offset": pa.uint64(),
        "size": pa.uint32(),
        "hash": pa.uint64(),
        "members": pa.uint32(),
        "images": pa.list_(pa.string()),
        "stores": pa.list_(pa.int16()),
        "frames": pa.list_(pa.int32()),
        "groups": pa.list_(pa.uint64()),
        "official_eval": pa.bool_(),
    }
)
_PLACE = ("offset", "size", "hash")
"""Of a line"""


def write_spool(folder: Path, dataset: str, stream: Iterable[Conversation | Reject]) -> dict[str, Any]:
    """Write the output of an adapter. Returns {"records", "conversations", "rejects": {reason: n}}."""
    rejects: Counter[str] = Counter()
    records = conversations = offset = 0
    rows = _Rows()
    with (
        (folder / RECORDS).open("wb", buffering=1 << 20) as lines,
        (folder / "rejects.jsonl").open("wb", buffering=1 << 16) as refused,
        pa.OSFile(str(folder / TABLE), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as table,
    ):
        for item in stream:
            if isinstance(item, Conversation):
                try:
                    line = encode(item) + b"\n"
                except ValueError as error:
                    for reject in reject_all(item, "bad_text", f"a text or a name of it is not UTF-8 ({error})"):
                        refused.write(reject_line(dataset, reject))
                        rejects[reject.reason] += 1
                        records += 1
                    continue
                lines.write(line)
                rows.add(item, line, offset)
                offset += len(line)
                conversations += 1
                records += len(item.sources)
                if len(rows) == _BATCH:
                    table.write_batch(rows.batch())
                    rows = _Rows()
            else:
                refused.write(reject_line(dataset, item))
                rejects[item.reason] += 1
                records += 1
        table.write_batch(rows.batch())
    sync_files(folder)
    return {"records": records, "conversations": conversations, "rejects": dict(sorted(rejects.items()))}


class Spool:
    """A spool on disk, memory-mapped: opening one reads no row, so it is cheap in every worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with (folder / TABLE).open("rb") as file:
            self._pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.table: pa.Table = pa.ipc.open_file(pa.py_buffer(self._pages)).read_all()
        self._file = os.open(folder / RECORDS, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._starts = _starts(self.table.column("offset").chunks)
        self._places = [[chunk.to_numpy() for chunk in self.table.column(name).chunks] for name in _PLACE]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def forget_pages(self) -> None:
        """Give back the memory of the table's pages that were read; what is read again comes from the file."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)

    def __getitem__(self, row: int) -> Conversation:
        """Raises DataError if the line is not the one that was written."""
        chunk = int(np.searchsorted(self._starts, row, "right")) - 1
        offset, size, written = (int(chunks[chunk][row - self._starts[chunk]]) for chunks in self._places)
        line = os.pread(self._file, size, offset)
        if xxhash.xxh3_64_intdigest(line) != written:
            raise DataError(
                f"{self.folder}/{RECORDS}: conversation {row} is damaged; remove {self.folder}, which the next "
                "run makes again"
            )
        return decode(line)

    @cached_property
    def num_images(self) -> int:
        """Of all rows; an image that several rows name counts each time."""
        return self.length("stores")

    def length(self, name: str) -> int:
        """Of all lists of a column."""
        return sum(len(chunk.flatten()) for chunk in self.table.column(name).chunks)

    def column(self, name: str) -> npt.NDArray[Any]:
        return np.asarray(self.table.column(name).to_numpy())

    def counts(self, name: str) -> npt.NDArray[np.int32]:
        """The length of each row's list."""
        counts = [np.diff(chunk.offsets.to_numpy()) for chunk in self.table.column(name).chunks]
        return np.concatenate([np.zeros(0, np.int32), *counts])

    def images(self, rows: npt.NDArray[np.int64]) -> Iterator[Image]:
        """The images of a few conversations, in order."""
        for row in rows.tolist():
            names, stores, frames = self.images_between(row, row + 1)
            yield from map(_image, names.to_pylist(), stores.tolist(), frames.tolist())

    def images_between(self, start: int, stop: int) -> tuple[pa.Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The images of the rows from `start` to before `stop`: names, as one Arrow array; stores and frames, or -1."""
        columns = [self.table.column(name).slice(start, stop - start).chunks for name in ("images", "stores", "frames")]
        names, stores, frames = ([chunk.flatten() for chunk in chunks] for chunks in columns)
        numbers = ([np.zeros(0, np.int64), *(chunk.to_numpy() for chunk in chunks)] for chunks in (stores, frames))
        in_store, in_file = (np.concatenate(part).astype(np.int64) for part in numbers)
        return pa.chunked_array(names, pa.string()).combine_chunks(), in_store, in_file

    def image_names(self) -> tuple[pa.Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The same of all images."""
        return self.images_between(0, len(self))

    def image_hashes(self) -> npt.NDArray[np.uint64]:
        """A hash of the images of each row: equal where rows name the same images in the same order."""
        names, stores, frames = self.image_names()
        codes = names.dictionary_encode().indices.to_numpy(zero_copy_only=False)
        return _hashes([codes, stores, frames], self.counts("images"))

    def hash_of_images(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """A hash for each row of the values of its images and their order. values: [P], one for each image."""
        return _hashes([values], self.counts("images"))

    def group_hashes(self) -> npt.NDArray[np.uint64]:
        """A hash of the groups of each row: equal where image_hashes are, and where rows of tables show equal bytes."""
        return _hashes([self.lists("groups")[0]], self.counts("groups"))

    def images_at(self, positions: npt.NDArray[np.int64]) -> Iterator[Image]:
        """The images at some positions in the list of all images, in the given order; reads only these."""
        names, stores, frames = self._images
        starts = _starts(names)
        in_chunk = np.searchsorted(starts, positions, "right") - 1
        for chunk, row in zip(in_chunk.tolist(), (positions - starts[in_chunk]).tolist(), strict=True):
            yield _image(names[chunk][row].as_py(), stores[chunk][row].as_py(), frames[chunk][row].as_py())

    @cached_property
    def _images(self) -> list[list[pa.Array]]:
        """The columns of images, without the borders between rows."""
        columns = (self.table.column(name).chunks for name in ("images", "stores", "frames"))
        return [[chunk.flatten() for chunk in chunks] for chunks in columns]

    def lists(self, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """A list column: its concatenated values, and where each row's values begin (one entry more than rows)."""
        column = self.table.column(name)
        values = [np.asarray(chunk.flatten().to_numpy(zero_copy_only=False)) for chunk in column.chunks]
        starts = np.zeros(len(self) + 1, np.int64)
        np.cumsum(self.counts(name), out=starts[1:])
        return (np.concatenate(values) if values else np.zeros(0)), starts


def reject_all(conversation: Conversation, reason: str, detail: str) -> Iterator[Reject]:
    """One reject for every record of a conversation that failed."""
    for source in conversation.sources:
        yield Reject(reason=reason, source=source, detail=detail)


def reject_line(dataset: str, reject: Reject) -> bytes:
    """One line of rejects.jsonl. Text that is not Unicode is escaped."""
    fields = {"reason": reject.reason, "file": reject.source.file, "record": reject.source.record}
    safe = {key: value.encode("utf-8", "backslashreplace").decode() for key, value in fields.items()}
    detail = reject.detail[:500].encode("utf-8", "backslashreplace").decode()
    return orjson.dumps({"dataset": dataset, **safe, "detail": detail}) + b"\n"


def sync_files(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _starts(chunks: list[pa.Array]) -> npt.NDArray[np.int64]:
    """Where each chunk begins, and where the last one ends."""
    return np.cumsum([0, *map(len, chunks)], dtype=np.int64)


def _hashes(values: list[npt.NDArray[Any]], counts: npt.NDArray[np.int32]) -> npt.NDArray[np.uint64]:
    """A hash of each row's elements and their order. values: columns of all elements; counts: elements of each row."""
    result = np.empty(len(counts), np.uint64)
    first = 0
    for start in range(0, len(counts), _BLOCK_ROWS):  # temporary arrays of a block, not of all rows
        block = counts[start : start + _BLOCK_ROWS].astype(np.int64)
        last = first + int(block.sum())
        result[start : start + len(block)] = _block_hashes([column[first:last] for column in values], block)
        first = last
    return result


def _block_hashes(values: list[npt.NDArray[Any]], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    starts = np.cumsum(counts) - counts
    hashes = np.zeros(int(counts.sum()), np.uint64)
    for column in (*values, np.arange(len(hashes)) - np.repeat(starts, counts)):
        hashes = mix(hashes ^ column.astype(np.uint64), 0)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes, dtype=np.uint64)])
    return np.asarray(sums[starts + counts] - sums[starts])


class _Rows:
    """Rows of the table that are not yet written, as columns. Lists are values and the number of each row's."""

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.sizes: list[int] = []
        self.hashes: list[int] = []
        self.members: list[int] = []
        self.names: list[str] = []
        self.stores: list[int] = []
        self.frames: list[int] = []
        self.num_images: list[int] = []
        self.groups: list[int] = []
        self.num_groups: list[int] = []
        self.official_eval: list[bool] = []

    def __len__(self) -> int:
        return len(self.offsets)

    def add(self, conversation: Conversation, line: bytes, offset: int) -> None:
        self.offsets.append(offset)
        self.sizes.append(len(line))
        self.hashes.append(xxhash.xxh3_64_intdigest(line))
        self.members.append(len(conversation.sources))
        before = len(self.names)
        for turn in conversation.turns:
            for part in turn.parts:
                if type(part) is Image:
                    self.names.append(part.name)
                    self.stores.append(-1 if part.store is None else part.store)
                    self.frames.append(-1 if part.frame is None else part.frame)
        self.num_images.append(len(self.names) - before)
        for group in conversation.groups:
            self.groups.append(xxhash.xxh3_64_intdigest(group.encode("utf-8", "surrogatepass")))
        self.num_groups.append(len(conversation.groups))
        self.official_eval.append(conversation.official_split in ("val", "test"))

    def batch(self) -> pa.RecordBatch:
        """All rows; the object is used up."""
        images, groups = (
            pa.array(np.cumsum([0, *counts], dtype=np.int32)) for counts in (self.num_images, self.num_groups)
        )
        columns = {
            "offset": pa.array(self.offsets, pa.uint64()),
            "size": pa.array(self.sizes, pa.uint32()),
            "hash": pa.array(self.hashes, pa.uint64()),
            "members": pa.array(self.members, pa.uint32()),
            "images": pa.ListArray.from_arrays(images, pa.array(self.names, pa.string())),
            "stores": pa.ListArray.from_arrays(images, pa.array(self.stores, pa.int16())),
            "frames": pa.ListArray.from_arrays(images, pa.array(self.frames, pa.int32())),
            "groups": pa.ListArray.from_arrays(groups, pa.array(self.groups, pa.uint64())),
            "official_eval": pa.array(self.official_eval, pa.bool_()),
        }
        return pa.RecordBatch.from_arrays([columns[field.name] for field in SCHEMA], schema=SCHEMA)


def _image(name: str, store: int, frame: int) -> Image:
    return Image(name=name, store=None if store < 0 else store, frame=None if frame < 0 else frame)
