"""A record made of several files: a JSON object, a text, and images next to them.

    0001.json  0001.jpg            one image
    0002.json  0002.0.jpg  0002.1.jpg    several, in the order of their numbers
    0003.txt   0003.png            a text and its image

Rules: the JSON is the record, and a text is its key txt; its images are MemberImages, which are read from the same
container, and never from a path. Images without a text are an UnreadableRecord. An image list in the JSON that names
these files, or as many images as there are, is replaced by them; any other is an UnreadableRecord. A file of another
kind is a key of the record, by its extension.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from preprocess.adapters.parsing.record_text import parsed_line
from preprocess.adapters.parsing.unreadable import UnreadableRecord
from preprocess.containers.sample_folders import TEXTS

IMAGE_EXTENSIONS = frozenset(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "ppm"))
MAX_TEXT_BYTES = 1 << 26
_DIGITS = re.compile(r"(\d+)")

M = TypeVar("M")


class MemberImage(NamedTuple):
    """An image next to its record; name: its key in the container as an image store."""

    name: str


def is_image(extension: str) -> bool:
    return extension.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def sample_record(
    sample: str, members: Mapping[str, M], name_of: Callable[[M], str], read: Callable[[M], bytes | UnreadableRecord]
) -> Any:
    """The record of a sample. members: by extension; read: the bytes of one that is a text."""
    images = [
        MemberImage(name_of(member))
        for extension, member in sorted(members.items(), key=lambda item: natural_order(item[0]))
        if is_image(extension)
    ]
    if images and not any(extension.lower() in TEXTS for extension in members):
        return UnreadableRecord(
            reason="no_match", detail=f"{images[0].name} has neither a .txt nor a .json of the same name next to it"
        )
    record: Any = {}
    for extension, member in members.items():
        kind = extension.lower()
        if kind in TEXTS:
            data, name = read(member), name_of(member)
            if isinstance(data, UnreadableRecord):
                return data
            value = parsed_line(data, name) if kind == "json" else _text(data, name)
            if isinstance(value, UnreadableRecord):
                return value
            if kind == "txt":
                record.setdefault("txt", value)
            elif type(value) is dict:
                record = {**record, **value}
            else:
                return UnreadableRecord(reason="wrong_type", detail=f"{name} is not an object; expected a record")
        elif not is_image(extension):
            record.setdefault(extension, name_of(member))
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


def natural_order(name: str) -> list[str | int]:
    """A key to sort by: 2.jpg before 10.jpg; text and numbers alternate, so parts of one position compare."""
    return [int(part) if index % 2 else part for index, part in enumerate(_DIGITS.split(name))]


def _text(data: bytes, name: str) -> Any:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        return UnreadableRecord(reason="bad_text", detail=f"{name}, byte {error.start + 1}: not UTF-8")
