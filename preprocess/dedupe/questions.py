"""The questions of an evaluation set, from a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from preprocess.errors import DataError


def read_questions(path: Path, key: str) -> list[str]:
    """The questions of a .txt (one a line), .jsonl or .json file.

    A .json file is a list of objects, or an object with one list of objects in it, as VQA v2 has. Raises DataError if
    the file or one of its questions cannot be read.
    """
    try:
        if path.suffix == ".txt":
            return [line for line in _read(path).decode("utf-8-sig").splitlines() if line.strip()]
        return list(_json_questions(path, key))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); convert it") from None


def _json_questions(path: Path, key: str) -> Iterator[str]:
    for number, record in enumerate(find_records(path), 1):
        question = record.get(key) if isinstance(record, dict) else None
        if not isinstance(question, str):
            keys = f"the keys {', '.join(record)}" if isinstance(record, dict) else type(record).__name__
            raise DataError(f"{path}: record {number}: got {keys}; expected a text under {key!r}; set question_key")
        yield question


def find_records(path: Path) -> list[Any]:
    """The records of a .jsonl or .json file, as `read_questions` finds them. Raises DataError."""
    data = _read(path)
    if path.suffix == ".jsonl":
        return [
            _parsed(path, line, f"line {number}: ") for number, line in enumerate(data.splitlines(), 1) if line.strip()
        ]
    tree = _parsed(path, data, "")
    lists = [value for value in tree.values() if isinstance(value, list)] if isinstance(tree, dict) else [tree]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise DataError(f"{path}: expected a list of objects, or an object with exactly one list in it")
    return lists[0]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _parsed(path: Path, text: bytes, where: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}: {where}is not JSON ({error})") from None
