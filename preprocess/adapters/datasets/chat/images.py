"""The images of a chat record: paths, images in the file of the record, or images as text.

Rule: a record has them under one of IMAGE_KEYS. The store of an image in a Parquet or Arrow file, named
`<row number>/<index>`, or in a tar, is that file, which must be in the dataset's `images`.
"""

from __future__ import annotations

from typing import Any

from preprocess.adapters.groups import embedded_group
from preprocess.adapters.parsing.fields import image_at, image_of_bytes
from preprocess.adapters.parsing.keys import IMAGE_KEYS, has_value, one_of
from preprocess.adapters.parsing.record_location import RecordLocation
from preprocess.adapters.parsing.record_tars import MemberImage
from preprocess.adapters.parsing.tools import parsed
from preprocess.conversation import Image
from preprocess.errors import RejectError

_PATH_KEYS = ("path", "url", "image")


def images_of(
    record: dict[str, Any], location: RecordLocation, store: int | None
) -> tuple[list[Image], dict[Image, str]]:
    """The record's images, and the groups of those that are in the file itself (`store`: its index in `images`)."""
    key = one_of(record, IMAGE_KEYS, "list of images") or next(
        (name for name in IMAGE_KEYS if record.get(name) not in (None, [])), None
    )
    if key is None:
        return [], {}
    values = record[key]
    if type(values) is str and values.startswith("["):
        values = parsed(values, key)
    images: list[Image] = []
    groups: dict[Image, str] = {}
    for index, value in enumerate(values if type(values) is list else [values]):
        if isinstance(value, MemberImage):
            images.append(Image(name=value.name, store=_own_store(location, store)))
            continue
        path, data = _path_and_data(value)
        if data is None:
            image = image_at(path, location.request, key)
        elif type(data) is not bytes:
            image = image_of_bytes(data, location.request)
        else:
            image = Image(name=f"{location.number}/{index}", store=_own_store(location, store))
            # The path of an embedded image is often the same for all rows, so it only counts if it is COCO's number.
            groups[image] = embedded_group(data, path if type(path) is str else None)
        images.append(image)
    return images, groups


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
    return (None, value) if type(value) is bytes else (value, None)
