"""The images of a record: paths, images in the file of the record, or images as text.

Rule: a record has them under one of IMAGE_KEYS, or one by one under numbered keys, such as `image_1` and `image_2`. The
store of an image in a Parquet or Arrow file, named `<row number>/<column>/<index>`, is that file, and the store of one
next to its record is the tar or folder of both; it must be in the dataset's `images`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.groups import embedded_group
from preprocess.adapters.parsing.fields import image_at, image_of_bytes, show
from preprocess.adapters.parsing.keys import has_value, one_of
from preprocess.adapters.parsing.record_location import RecordLocation
from preprocess.adapters.parsing.sample_records import MemberImage, is_image
from preprocess.adapters.parsing.tools import parsed
from preprocess.adapters.parsing.videos import video_key
from preprocess.containers.image_columns import IMAGE_KEYS, numbered
from preprocess.conversation import Image
from preprocess.errors import RejectError

_PATH_KEYS = ("path", "url", "image")
_MAX_KEYS_CACHED = 64
_MAX_PATH = 2048


def images_of(
    record: dict[str, Any], location: RecordLocation, store: int | None, source: dict[str, Any]
) -> tuple[list[Image], dict[Image, str]]:
    """The record's images, and the groups of those that are in the file itself.

    store: the file's index in `images`. source: the record under its own names, which are those of a table's columns.
    """
    return _references(_image_keys(record), record, location, store, source)


def videos_of(
    record: dict[str, Any], location: RecordLocation, store: int | None, source: dict[str, Any]
) -> tuple[list[Image], dict[Image, str]]:
    """The same of the record's videos."""
    key = video_key(record, location.request)
    return ([], {}) if key is None else _references([key], record, location, store, source)


def _references(
    keys: list[str], record: dict[str, Any], location: RecordLocation, store: int | None, source: dict[str, Any]
) -> tuple[list[Image], dict[Image, str]]:
    images: list[Image] = []
    groups: dict[Image, str] = {}
    for key in keys:
        for index, value in enumerate(_values(record[key], key)):
            if isinstance(value, MemberImage):
                images.append(Image(name=value.name, store=_own_store(location, store)))
                continue
            path, data = _path_and_data(value)
            if data is None:
                image = image_at(path, location.request, key)
            elif type(data) is not memoryview:
                image = image_of_bytes(data, location.request)
            else:
                column = _column(key, location.request, source)
                image = Image(name=f"{location.number}/{column}/{index}", store=_own_store(location, store))
                # The path of an embedded image is often the same for all rows, so only COCO's number counts.
                groups[image] = embedded_group(data, path if type(path) is str else None)
            images.append(image)
    return images, groups


def check_unread_images(objects: Iterable[dict[str, Any]], request: Request, understood: frozenset[str]) -> None:
    """For a record that shows no image: raises RejectError for a path of an image under a key that nobody reads."""
    for one in objects:
        for name, value in one.items():
            if name not in understood and name not in request.keys and is_image_path(value):
                raise RejectError(
                    "unknown_key",
                    f"key {show(name)} holds the path of an image, and the record shows none; set fields: "
                    f"{{{show(name)}: image}} to read it, or keys: {{{show(name)}: ignore}} to leave it out",
                )


def is_image_path(value: Any) -> bool:
    """Whether a text is the path or the URL of an image file, by its extension."""
    if type(value) is not str or len(value) > _MAX_PATH or "." not in value or "\n" in value:
        return False
    return is_image(value.partition("?")[0])


def _image_keys(record: dict[str, Any]) -> list[str]:
    """The keys that have images, in their order: one of IMAGE_KEYS, or numbered ones. Raises RejectError."""
    plain = one_of(record, IMAGE_KEYS, "list of images")
    names = (_cached_numbered_keys if len(record) <= _MAX_KEYS_CACHED else _numbered_keys)(tuple(record))
    keys = [(stem, number, name) for stem, number, name in names if has_value(record[name])]
    if not keys and plain is not None:  # nearly all records with images
        return [plain]
    if not keys:
        return [name for name in IMAGE_KEYS if record.get(name) not in (None, [])][:1]  # it says what is wrong
    given = [name for *_, name in keys] if plain is None else [plain, *(name for *_, name in keys)]
    first = min(keys[0][1], 1) if plain is None else 2  # image_0 or image_1; image, image_2
    expected = [(plain or keys[0][0], first + place) for place in range(len(keys))]
    if [(stem, number) for stem, number, _ in keys] != expected:
        raise RejectError(
            "image_count",
            f"the images are under the keys {', '.join(given)}; expected numbers without a gap, such as image_1, "
            f"image_2; to leave one out, set keys: {{{given[-1]}: ignore}}",
        )
    for name in given:
        if type(record[name]) is list and len(record[name]) != 1:
            raise RejectError("image_count", f"{name} has {len(record[name])} images; expected one")
    return given


def _numbered_keys(names: tuple[str, ...]) -> tuple[tuple[str, int, str], ...]:
    """(stem, number, name) of the keys such as image_2, in the order of their numbers."""
    return tuple(sorted((*found, name) for name in names if (found := numbered(name))))


_cached_numbered_keys = lru_cache(maxsize=512)(_numbered_keys)


def _values(values: Any, key: str) -> list[Any]:
    if type(values) is str and values.startswith("["):
        values = parsed(values, key)
    return values if type(values) is list else [values]


def _column(key: str, request: Request, source: dict[str, Any]) -> str:
    """The column of a table that the blend's `fields` and `keys` give the name of this key."""
    mapped = (theirs for theirs, ours in request.keys.items() if ours == key and has_value(source.get(theirs)))
    return next(mapped, key)


def _own_store(location: RecordLocation, store: int | None) -> int:
    """The store of images in the file itself."""
    if store is None:
        file = location.source.file
        raise RejectError("image_missing", f"the image is in {file} itself; add {file} to the dataset's `images`")
    return store


def _path_and_data(value: Any) -> tuple[Any, Any]:
    """The path of an image, and its bytes; either may be None."""
    if type(value) is dict:
        return next((value[name] for name in _PATH_KEYS if has_value(value.get(name))), None), value.get("bytes")
    return (None, value) if type(value) is memoryview else (value, None)
