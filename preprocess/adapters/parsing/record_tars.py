"""The records of a WebDataset tar: the members with a common name up to the first dot are one sample.

    0001.json  0001.jpg            one image
    0002.json  0002.0.jpg  0002.1.jpg    several, in the order of their numbers

Rules: the JSON is the record; its images are MemberImages, which are read from the same tar, and never from a path. An
image list in the JSON that names members, or as many images as the sample has, is replaced by them; any other is an
UnreadableRecord. A member of another kind is a key of the record, by its extension. Memory holds one record, and the
names and places of the tar's members.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from preprocess.adapters.parsing.record_text import parsed_line
from preprocess.adapters.parsing.unreadable import UnreadableRecord
from preprocess.containers.tar import member_key, tar_members
from preprocess.errors import DataError

IMAGE_EXTENSIONS = frozenset(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "ppm"))
_MAX_TEXT_BYTES = 1 << 26
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_DIGITS = re.compile(r"(\d+)")


class MemberImage(NamedTuple):
    """An image next to its record in a tar; name: its key in the tar as an image store."""

    name: str


class _Member(NamedTuple):
    name: str
    offset: int
    size: int
    is_file: bool


def tar_records(path: Path) -> Iterator[Any]:
    """The samples in the order of their first members. Raises DataError for a tar that is damaged or cut off."""
    samples: dict[str, dict[str, _Member]] = {}
    try:
        for info in tar_members(path):
            name = member_key(info.name)
            match = _NAME.fullmatch(name)
            sample, extension = match.groups() if match else (name, "")
            # The last of two equal names counts, as when a tar is unpacked.
            samples.setdefault(sample, {})[extension] = _Member(name, info.offset_data, info.size, info.isreg())
        with path.open("rb") as file:
            for sample, members in samples.items():
                yield _record(sample, members, file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _record(sample: str, members: dict[str, _Member], file: Any) -> Any:
    if "" in members:
        return UnreadableRecord(
            reason="bad_value", detail=f"the member {sample} has no extension, so it is not part of a sample"
        )
    images = [
        MemberImage(member.name)
        for extension, member in sorted(members.items(), key=lambda item: _natural(item[0]))
        if _is_image(extension)
    ]
    record: Any = {}
    for extension, member in members.items():
        kind = extension.lower()
        if kind in ("json", "txt"):
            if not member.is_file or member.size > _MAX_TEXT_BYTES:
                what = f"has {member.size} bytes; at most {_MAX_TEXT_BYTES} are read" if member.is_file else "is a link"
                return UnreadableRecord(reason="bad_value", detail=f"{member.name} {what}")
            file.seek(member.offset)
            data = file.read(member.size)
            value = parsed_line(data, member.name) if kind == "json" else _text(data, member.name)
            if isinstance(value, UnreadableRecord):
                return value
            if kind == "json":
                if type(value) is not dict:
                    return UnreadableRecord(
                        reason="wrong_type", detail=f"{member.name} is not an object; expected a record"
                    )
                record = {**record, **value}
            else:
                record.setdefault("txt", value)
        elif not _is_image(extension):
            record.setdefault(extension, f"{member.size} bytes")
    return _with_images(sample, record, images)


def _with_images(sample: str, record: dict[str, Any], images: list[MemberImage]) -> Any:
    key = next((name for name in ("images", "image") if record.get(name) not in (None, [], "")), None)
    if key is None:
        return {**record, "images": images} if images else record
    if not images:
        return record
    given = record[key] if type(record[key]) is list else [record[key]]
    by_name = {form: image for image in images for form in _forms(sample, image.name)}
    named = [by_name.get(value) if type(value) is str else None for value in given]
    if all(named) and len({*named}) == len(images):
        return {**record, key: named}
    if len(given) == len(images):
        return {**record, key: images}
    return UnreadableRecord(
        reason="bad_value",
        detail=f"the sample {sample} has {len(images)} images, and {key} names {len(given)}; expected the same number",
    )


def _forms(sample: str, name: str) -> Iterator[str]:
    """How a record may name an image of its sample: in full, without folders, or by what follows the sample's name."""
    yield name
    yield name.rpartition("/")[2]
    yield name[len(sample) + 1 :]


def _is_image(extension: str) -> bool:
    return extension.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def _natural(extension: str) -> list[str | int]:
    """2.jpg before 10.jpg; text and numbers alternate, so parts of one position compare."""
    return [int(part) if index % 2 else part for index, part in enumerate(_DIGITS.split(extension))]


def _text(data: bytes, name: str) -> Any:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        return UnreadableRecord(reason="bad_text", detail=f"{name}, byte {error.start + 1}: not UTF-8")
