"""Which keys of records and columns of tables hold images: by their names, and in tables by their types.

Rule: `image_2` is the second image of a record, after `image` or `image_1`. A column is one of images if it is of
`{bytes, path}` (the type of images in `datasets`), or of plain bytes under a name for images; without any of these, all
columns of bytes are.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_KEYS = (
    *("image", "images", "img", "imgs", "image_path", "image_paths", "image_file", "image_files", "image_url"),
    *("image_urls", "image_name", "image_names", "image_list", "img_path", "img_paths", "img_url", "picture"),
    *("pictures", "photo", "photos", "screenshot", "screenshots", "file_name"),
)
"""Names under which records have their images: paths, or images inside the file."""

NUMBERED_KEYS = tuple(f"image_{number}" for number in range(1, 10))
"""Names of single images, for `fields` of a blend; records may have others, such as `photo3` or `image_12`."""

_NUMBERED = re.compile(rf"({'|'.join(IMAGE_KEYS)})[_-]?(\d{{1,4}})")


@lru_cache(maxsize=4096)
def numbered(name: str) -> tuple[str, int] | None:
    """The name and the number of a key such as `image_2`; None for any other."""
    match = _NUMBERED.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def image_columns(schema: pa.Schema) -> list[str]:
    """The columns with the bytes of images, in their order; empty for a table without any."""
    by_name: list[str] = []
    others: list[str] = []
    for field in schema:
        kind = _inner(field.type)
        if _is_file(kind) or (_is_bytes(kind) and (field.name in IMAGE_KEYS or numbered(field.name))):
            by_name.append(field.name)
        elif _is_bytes(kind):
            others.append(field.name)
    return by_name or others


def image_cells(column: pa.Array) -> list[Any]:
    """The values of a column of images as `to_pylist` gives them, but bytes as memoryviews: nothing is copied."""
    import pyarrow as pa

    kind = column.type
    if _is_list(kind):
        items = iter(image_cells(column.flatten()))
        lengths = column.value_lengths().to_pylist()
        return [None if length is None else list(islice(items, length)) for length in lengths]
    if pa.types.is_struct(kind):
        fields = [image_cells(field) for field in column.flatten()]
        names = [field.name for field in kind]
        is_valid = column.is_valid().to_pylist()
        return [
            dict(zip(names, row, strict=True)) if valid else None
            for valid, row in zip(is_valid, zip(*fields, strict=True), strict=True)
        ]
    if _is_bytes(kind):
        return [memoryview(value.as_buffer()) if value.is_valid else None for value in column]
    others: list[Any] = column.to_pylist()
    return others


def readable_cells(column: pa.Array) -> list[Any]:
    """As `image_cells`; None for a row with a path that is not UTF-8, whose record is a reject."""
    try:
        return image_cells(column)
    except UnicodeDecodeError:
        if len(column) == 1:
            return [None]
        return [cell for row in range(len(column)) for cell in readable_cells(column.slice(row, 1))]


def texts(column: pa.Array) -> list[str | None]:
    """The values of a column of texts; bytes that are not UTF-8 become lone surrogates."""
    import pyarrow as pa

    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        values = plain.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in values]


def _inner(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values, or of the items of its lists."""
    return kind.value_type if _is_list(kind) else kind


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_file(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind)) and any(field.name == "bytes" and _is_bytes(field.type) for field in kind)


def _is_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    of_any_size = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return bool(of_any_size or pa.types.is_fixed_size_binary(kind))
