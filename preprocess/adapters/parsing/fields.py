"""Check the fields of a record, and turn every problem into a reject.

Rule: for any JSON value, `build_or_reject` returns the result or a reject; only a file that cannot be used as a whole
raises DataError. All text from this module is Unicode text: it can be encoded.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from preprocess.adapters import groups
from preprocess.adapters.base import Request
from preprocess.adapters.parsing.image_data import SHORTEST, decoded, image_data
from preprocess.adapters.parsing.image_paths import image_below, plain_path
from preprocess.adapters.parsing.tag_pattern import tag_in
from preprocess.adapters.parsing.unreadable import UnreadableRecord
from preprocess.conversation import Image, RecordSource, Reject, is_url
from preprocess.errors import RejectError

_UNFORESEEN = (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError)

_ORDINARY = re.compile(r"[0-9A-Za-z_-][0-9A-Za-z_.-]*(?:/[0-9A-Za-z_-][0-9A-Za-z_.-]*)*")
"""A relative path that needs no change."""

T = TypeVar("T")


def build_or_reject(source: RecordSource, build: Callable[..., T], *arguments: Any) -> T | Reject:
    """The result of `build(*arguments)` for a record, or the reject that says why there is none."""
    try:
        return build(*arguments)
    except RejectError as bad:
        return Reject(reason=bad.reason, source=source, detail=bad.detail)
    except _UNFORESEEN as error:
        return Reject(reason="internal_error", source=source, detail=f"{type(error).__name__}: {printable(str(error))}")


def object_of(value: Any, what: str = "the record") -> dict[str, Any]:
    if type(value) is not dict:
        if isinstance(value, UnreadableRecord):
            raise RejectError(value.reason, value.detail)
        raise RejectError("wrong_type", f"{what} is {show(value)}; expected an object")
    return value


def list_of(record: dict[str, Any], key: str) -> list[Any]:
    value = need(record, key)
    if type(value) is not list:
        raise RejectError("wrong_type", f"{key} is {show(value)}; expected an array")
    return value


def need(record: dict[str, Any], key: str) -> Any:
    if key not in record:
        raise RejectError("missing_key", f"there is no key {key}")
    return record[key]


def text(value: Any, what: str, *, with_tags: bool = False) -> str:
    """The value as text, without leading and trailing whitespace; it may be empty.

    with_tags: whether it may have tags such as <image>, which the adapter then reads.
    """
    if type(value) is not str:
        raise RejectError("wrong_type", f"{what} is {show(value)}; expected text")
    if not is_text(value):
        raise RejectError("bad_text", f"{what} is {show(value)}, with a lone surrogate; expected Unicode text")
    if not with_tags and (tag := tag_in(value)):
        raise RejectError("unread_media", f"{what} has the tag {show(tag)}, which is not read")
    return value.strip()


def question(value: Any, what: str = "question") -> str:
    words = text(value, what)
    if not words:
        raise RejectError("empty_question", f"{what} is empty")
    return words


def answer(value: Any, what: str = "answer") -> str:
    words = text(value, what)
    if not words:
        raise RejectError("empty_answer", f"{what} is empty")
    return words


def texts(value: Any, what: str) -> tuple[str, ...]:
    """An array of texts, each without leading and trailing whitespace; empty ones are kept."""
    if type(value) is not list:
        raise RejectError("wrong_type", f"{what} is {show(value)}; expected an array of texts")
    return tuple(text(item, f"an item of {what}") for item in value)


def as_id(value: Any) -> str | None:
    if type(value) is int:
        return str(value)
    return value if type(value) is str and value and is_text(value) else None


def need_id(record: dict[str, Any], key: str) -> str:
    """A required id, as text: 17 and "17" are the same."""
    value = need(record, key)
    identity = as_id(value)
    if identity is not None:
        return identity
    if type(value) is str:
        raise RejectError("bad_text" if value else "bad_value", f"{key} is {show(value)}; expected an id")
    raise RejectError("wrong_type", f"{key} is {show(value)}; expected an integer or a text")


def coco_name(image_id: Any, prefix: str = "") -> str:
    """The file name of the COCO image with this number."""
    if type(image_id) is not int:
        raise RejectError("wrong_type", f"image_id is {show(image_id)}; expected an integer")
    if image_id < 0:
        raise RejectError("bad_value", f"image_id is {image_id}; expected 0 or more")
    return f"{prefix}{image_id:012}.jpg"


def image_name(value: Any, what: str = "image") -> str:
    """The name in an image store, with single slashes and no `.` or `..`; a URL as it is.

    An absolute path is a reject: an adapter whose records may have them calls `image_at`.
    """
    name = _plain_name(value, what)
    if name.startswith(("/", "../")):
        raise RejectError("image_path", f"{what} is {show(value)}; expected a relative path without ..")
    return name


def image_at(value: Any, request: Request, what: str = "image") -> Image:
    """The image at a path, relative to an image store, or absolute or with `..` and below one; or base64 text."""
    if type(value) is str and len(value) < SHORTEST and _ORDINARY.fullmatch(value):  # nearly all
        return Image(name=value)
    data = image_data(value, what) if type(value) is str else None
    if data is not None:
        return request.embedded.keep(data)
    name = _plain_name(value, what)
    if name.startswith("../"):
        name = os.path.normpath(os.path.join(os.path.abspath(request.root), name))
    if name.startswith("/"):
        return image_below(name, value, request.images, request.root, what)
    return Image(name=name)


def image_of_bytes(value: Any, request: Request, what: str = "bytes") -> Image:
    """The image whose bytes are in a record as base64 text, or as a data URI."""
    if type(value) is not str:
        raise RejectError("wrong_type", f"{what} is {show(value)}; expected base64 text")
    return request.embedded.keep(image_data(value, what) or decoded(value, what))


def _plain_name(value: Any, what: str) -> str:
    if type(value) is not str:
        raise RejectError("wrong_type", f"{what} is {show(value)}; expected the path of an image")
    if not is_text(value):
        raise RejectError("bad_text", f"{what} is {show(value)}, with a lone surrogate; expected Unicode text")
    if not value:
        raise RejectError("image_path", f"{what} is empty; expected the path of an image")
    return value if is_url(value) else plain_path(value, what)


def check_image_count(count: int, request: Request) -> None:
    if count > request.max_images:
        raise RejectError(
            "too_many_images",
            f"got {count} images, expected at most {request.max_images}; raise limits.max_images to keep the record",
        )


def image_groups(request: Request, images: Iterable[Image]) -> tuple[str, ...]:
    shown = tuple(images)
    if len(shown) == 1 and shown[0].store is None:  # nearly all
        return groups.image_groups(request.images or (request.root,), shown[0].name)
    found: dict[str, None] = {}
    for image in shown:
        stores = request.images if image.store is None else (request.images[image.store],)
        found.update(dict.fromkeys(groups.image_groups(stores or (request.root,), image.name)))
    return tuple(found)


def is_text(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(words: str) -> str:
    return words.encode("utf-8", "backslashreplace").decode()


def show(value: Any) -> str:
    """A value in a few words; a container only by its kind, since it may be large or deeply nested."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return '"' + printable(value[:60]) + ('..."' if len(value) > 60 else '"')
        case dict():
            return "an object"
        case list():
            return f"an array of {len(value)}"
        case bytes():
            return f"{len(value)} bytes"
        case _:
            return str(value)[:60]
