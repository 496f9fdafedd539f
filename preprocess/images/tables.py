"""Unpack the images of a Parquet or Arrow file into one flat file: neither has a cheap way to read a single cell.

Two layouts. MIMIC-IT: a text column `base64`, with the keys in the pandas index or a text column. Hugging Face:
columns of {bytes, path} or of plain bytes, or of lists of either (preprocess.containers.image_columns); the keys are
"<row>/<column>/<index in the list>", both from 0, and also the path if there is one. A file without such a column
contains no image: an annotation file may be in the list of stores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from preprocess.containers.image_columns import image_columns, readable_cells, texts
from preprocess.containers.table_damage import damage_named
from preprocess.containers.tables import BadRow, Choose, arrow_batches, parquet_batches
from preprocess.errors import DataError
from preprocess.images.base64_json import decode_base64
from preprocess.images.index import ArchiveIndexBuilder, Packing

_ROW_KEY = re.compile(r"\d+/.*/\d+", re.DOTALL)


def is_row_key(name: str) -> bool:
    """Whether a name is that of a cell: the same image in another row has another one."""
    return _ROW_KEY.fullmatch(name) is not None


def has_base64(schema: pa.Schema) -> bool:
    """Whether images are a column of base64 text."""
    return "base64" in schema.names and _is_text(schema.field("base64").type)


def key_column(path: Path, schema: pa.Schema) -> str:
    """The column with the keys of base64 images. Raises DataError if there is none."""
    candidates: list[Any] = [*_index_columns(schema), "__index_level_0__"]
    candidates += [field.name for field in schema if _is_text(field.type) and field.name != "base64"]
    for name in candidates:
        if isinstance(name, str) and name in schema.names:  # a pandas range index is a dict, not a column
            return name
    raise DataError(f"{path}: column base64 has no keys; expected them in the pandas index or in a text column")


def unpack_parquet(path: Path, index: ArchiveIndexBuilder, blob: BinaryIO) -> None:
    """Write every image to `blob` and add its keys. Raises DataError for a damaged file."""
    _unpack(path, parquet_batches, "Parquet", index, blob)


def unpack_arrow(path: Path, index: ArchiveIndexBuilder, blob: BinaryIO) -> None:
    """The same for an Arrow file or stream."""
    _unpack(path, arrow_batches, "an Arrow file", index, blob)


def _unpack(
    path: Path,
    batches: Callable[[Path, Choose], Iterator[Any]],
    kind: str,
    index: ArchiveIndexBuilder,
    blob: BinaryIO,
) -> None:
    columns: list[str] = []
    keys: str | None = None

    def choose(schema: pa.Schema) -> list[str]:
        nonlocal keys
        if has_base64(schema):
            keys = key_column(path, schema)
            columns.extend((keys, "base64"))
        else:
            columns.extend(image_columns(schema))
        return columns

    row = 0
    with damage_named(path, kind):
        for batch in batches(path, choose):
            if not columns:
                return
            if isinstance(batch, BadRow):  # its record is a reject
                row += 1
                continue
            if keys is not None:
                _add_base64(texts(batch.column(keys)), texts(batch.column("base64")), index, blob)
            else:
                for name in columns:
                    _add_images(row, name, readable_cells(batch.column(name)), index, blob)
            row += batch.num_rows


def _add_base64(keys: list[Any], values: list[Any], index: ArchiveIndexBuilder, blob: BinaryIO) -> None:
    for key, text in zip(keys, values, strict=True):
        if key is None:
            continue
        try:
            _add(index, blob, [str(key)], decode_base64((text or "").encode()))  # a lone surrogate is a ValueError
        except ValueError:
            index.add(str(key), blob.tell(), 0, Packing.NOT_TEXT)


def _add_images(first: int, column: str, cells: list[Any], index: ArchiveIndexBuilder, blob: BinaryIO) -> None:
    """first: the number of the first cell's row."""
    for row, cell in enumerate(cells, first):
        for place, image in enumerate(cell if isinstance(cell, list) else [cell]):
            if image is not None:
                data, name = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
                # A path in the form of a row's key would hide that row.
                names = [name] if name and not is_row_key(name) else []
                _add(index, blob, [f"{row}/{column}/{place}", *names], data or b"")  # none: an error when it is read


def _add(
    index: ArchiveIndexBuilder,
    blob: BinaryIO,
    keys: list[str],
    image: bytes | memoryview,
) -> None:
    offset = blob.tell()
    blob.write(image)
    index.add_kept(keys, offset, image)


def _index_columns(schema: pa.Schema) -> list[Any]:
    """Those of pandas, as its metadata says; none if there is none, or if it is damaged."""
    try:
        pandas = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    except (ValueError, RecursionError):
        return []
    columns = pandas.get("index_columns") if isinstance(pandas, dict) else None
    return columns if isinstance(columns, list) else []


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
