"""The record that a sample or a reject was made from, as it was read.

Rules: a file is read only if it is one of the manifest's `inputs`, with its size and digest. So a build from elsewhere
can never make the viewer show another file of this machine. A look takes a limited time, and never holds a file.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.adapters.parsing.json_stream import array_items, object_items, outline
from preprocess.adapters.parsing.record_files import json_form, read_records
from preprocess.adapters.parsing.record_tables import table_records
from preprocess.adapters.parsing.record_text import kind_of
from preprocess.adapters.parsing.unreadable import UnreadableRecord
from preprocess.errors import ConfigError, DataError
from shards.files import file_sha256
from shards.format.manifest import Manifest

BUDGET_S = 2.0
_ID_KEYS = ("id", "question_id", "sample_id", "record_id", "uid", "uuid", "key", "__key__", "sentid", "image_id")
_SELDOM_RECORDS = ("images", "info", "licenses", "categories", "videos")
"""Members of a file that are searched last: most often they are about records elsewhere in it"""
_PART = re.compile(r"(.+)/([0-9]{1,6})", re.DOTALL)
"""A question of a record that has several, by its number from 0"""
_MOST_TABLES = 16
_LONG_TEXT, _LONG_RECORD = 4000, 200_000
_BASE64 = re.compile(r"(data:[^,]{0,100},)?[A-Za-z0-9+/_-]{200,}={0,2}")
_SHOWN_BASE64 = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """value: as parsed. text: as indented JSON, long texts cut. fault: why it cannot be shown, and what to do."""

    file: str
    record: str
    value: Any = None
    text: str = ""
    fault: str = ""


class SourceRecords:
    """Reads records of a build's annotation files."""

    def __init__(self, manifest: Manifest, bases: tuple[Path, ...]) -> None:
        """bases: folders in which the blend file may have been; its relative paths start there."""
        self._manifest = manifest
        self._bases = bases
        self._roots = {str(entry["name"]): str(entry.get("root") or "") for entry in manifest.config.blend["datasets"]}
        self._checked: dict[tuple[Path, int, int, int], bool] = {}

    def read(self, dataset: str, file: str, record: str) -> SourceRecord:
        """The record of a dataset, by the file and the record that metadata or rejects.jsonl name."""
        try:
            path = self._locate(dataset, file)
            value = find_record(path, record)
        except (DataError, OSError) as error:
            return SourceRecord(file=file, record=record, fault=str(error))
        if isinstance(value, UnreadableRecord):
            return SourceRecord(file=file, record=record, fault=f"it cannot be read: {value}")
        return SourceRecord(file=file, record=record, value=value, text=_json_text(value))

    def _locate(self, dataset: str, file: str) -> Path:
        """The pinned file on this machine. Raises DataError."""
        info = self._manifest.datasets.get(dataset)
        pinned = next((each for each in info.inputs if each.file == file), None) if info else None
        if pinned is None:
            raise DataError(f"{file}: is not an input of the dataset {dataset}, so it is not read")
        if (folder := os.path.dirname(file)) and ".." in Path(folder).parts:
            raise DataError(f"{file}: leads out of the dataset's folder, so it is not read")
        root = self._roots.get(dataset, "")
        if "://" in root:  # a build may be from anywhere, so a look at it asks no other machine
            raise DataError(f"{file}: is at {root}; view shows records of local files, dsvl-prep render those of URLs")
        places = [base / os.path.expanduser(root) / file for base in self._bases]
        for path in dict.fromkeys(places):
            if self._is_pinned(path, pinned.size, pinned.sha256):
                return path
        where = ", ".join(str(path) for path in dict.fromkeys(places))
        raise DataError(
            f"{file}: the file that this build was made from is not there, or it changed since; looked at {where}; "
            "name the blend file with --blend, next to which its paths start"
        )

    def _is_pinned(self, path: Path, size: int, sha256: str) -> bool:
        try:
            status = path.stat()
            if status.st_size != size or not path.is_file():
                return False
            state = (path, status.st_ino, status.st_size, status.st_mtime_ns)
            if state not in self._checked:
                self._checked[state] = file_sha256(path) == sha256
        except OSError:
            return False
        return self._checked[state]


def bases_of(location: str | Path, blend: Path | None) -> tuple[Path, ...]:
    """Folders in which the blend file of a build may be. Raises ConfigError if the one that is named is not there."""
    if blend is not None and not blend.is_file():
        raise ConfigError([f"--blend {blend}: there is no such file; expected the blend file of this build"])
    if blend is not None:
        return (blend.absolute().parent,)
    here = Path.cwd()
    if "://" in str(location):
        return (here,)
    folder = Path(location).expanduser().absolute()
    return tuple(dict.fromkeys((here, folder.parent, folder)))


def find_record(path: Path, record: str, *, budget_s: float = BUDGET_S) -> Any:
    """The parsed record with this id, or else with this number; of `<id>/<n>`, the record that asks question n.

    Raises DataError if there is none, or not in time.
    """
    deadline = time.monotonic() + budget_s
    best: tuple[int, Any] | None = None
    for records in _tables(path):
        for number, (key, value) in enumerate(records):
            rank = _rank(key, value, number, record)
            if rank is None:
                rank = _rank_of_part(key, value, number, record)
            if rank is not None and (best is None or rank < best[0]):
                best = rank, value
            if best is not None and best[0] == 0:
                return best[1]
            if time.monotonic() > deadline:
                if best is not None:
                    return best[1]
                raise DataError(
                    f"{path}: record {record} is not among the first {number + 1:,}, "
                    f"and a look may take {budget_s:g} s; search the file itself"
                )
    if best is None:
        raise DataError(f"{path}: has no record {record}")
    return best[1]


def _rank(key: str | None, value: Any, number: int, record: str) -> int | None:
    """How sure it is that this is the record: 0 is an id, larger numbers are guesses; None if it is another."""
    if key == record:
        return 0
    ids = {name: str(value[name]) for name in _ID_KEYS if name in value} if isinstance(value, dict) else {}
    for rank, name in enumerate(_ID_KEYS):
        if ids.get(name) == record:
            return 0 if name in ("id", "question_id") else rank
    if str(number) == record:
        return len(_ID_KEYS) if ids or key is not None else 0
    parts = value.values() if isinstance(value, dict) else ()
    nested = (item for part in parts if isinstance(part, list) for item in part if isinstance(item, dict))
    if any(str(item[name]) == record for item in nested for name in _ID_KEYS if name in item):
        return len(_ID_KEYS) + 1  # such as a caption, in the record of its image
    return None


def _rank_of_part(key: str | None, value: Any, number: int, record: str) -> int | None:
    """The same for a question of a record: its list of questions, or another list, must be long enough."""
    part = _PART.fullmatch(record)
    if part is None or not isinstance(value, dict):
        return None
    lists = [name for name, items in value.items() if isinstance(items, list) and len(items) > int(part[2])]
    rank = _rank(key, value, number, part[1]) if lists else None
    return rank if rank is None or "questions" in lists else rank + len(_ID_KEYS) + 2


class _EveryColumn:
    """The columns of a table that are shown: all of them, with those that the adapter ignored."""

    def __contains__(self, name: object) -> bool:
        return True


def _tables(path: Path) -> Iterator[Iterator[tuple[str | None, Any]]]:
    """What may be the records of a file, each with its key in the file if it has one."""
    if path.is_dir() or (kind := kind_of(path)) == "a tar" or (kind == "text" and json_form(path) != "object"):
        yield ((None, value) for value in read_records(path, ("conversations", "messages", "question", "caption")))
        return
    if kind != "text":
        yield ((None, value) for value in table_records(path, kind, _EveryColumn()))
        return
    members = [(key, opening) for key, opening, _ in outline(path)]
    if all(opening == "{" for _, opening in members):
        yield object_items(path)
    if len(members) > _MOST_TABLES:
        return
    for key, opening in sorted(members, key=lambda member: member[0] in _SELDOM_RECORDS):
        if opening == "[":
            yield ((None, value) for value in array_items(path, key))
        elif opening == "{":
            yield object_items(path, key)


def _json_text(value: Any) -> str:
    text = json.dumps(_shortened(value), ensure_ascii=False, indent=2, default=str)
    return (
        text if len(text) <= _LONG_RECORD else f"{text[:_LONG_RECORD]}… ({len(text) - _LONG_RECORD:,} more characters)"
    )


def _shortened(value: Any) -> Any:
    """The value with its longest texts cut, base64 first: a record may have an image inside."""
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(item) for item in value]
    if isinstance(value, bytes | memoryview):
        return f"{len(value):,} bytes"
    if isinstance(value, str):
        most = _SHOWN_BASE64 if _BASE64.fullmatch(value) else _LONG_TEXT
        return value if len(value) <= most else f"{value[:most]}… ({len(value) - most:,} more characters)"
    return value
