"""Parts of a message's content: `{"type": "text", "text"}`, `{"type": "image", "image"}`, `{"type": "image_url", ...}`.

Rule: a part is text, an image, or a video if the dataset shows frames. An image without a path takes the next of the
record's images, or the one at its `index`. A part of any other type makes the record a reject.
"""

from __future__ import annotations

from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.fields import image_at, object_of, show
from preprocess.adapters.parsing.keys import check_keys, given
from preprocess.adapters.parsing.media_tags import Mark, Slot, TagRules, slots
from preprocess.adapters.parsing.videos import ADVICE
from preprocess.conversation import Image, Role
from preprocess.errors import RejectError

PATH_KEYS = ("image", "path", "url", "image_url", "image_path")
_KEYS = frozenset(("type", "text", "index", "detail", *PATH_KEYS))
_TEXT = frozenset(("text", "input_text", "output_text"))
_IMAGE = frozenset(("image", "image_url", "input_image", "image_path"))
_VIDEO = frozenset(("video", "video_url", "input_video"))
_VIDEO_PATHS = ("video", "video_url", "path", "url")
_VIDEO_KEYS = frozenset(("type", *_VIDEO_PATHS))
_MEDIA = frozenset((*_VIDEO, "audio", "audio_url", "input_audio", "file", "document"))


def parts_slots(parts: list[Any], role: Role, has_images: bool, rules: TagRules, request: Request) -> list[Slot]:
    """The slots of a content that is an array of parts. Raises RejectError."""
    objects = [object_of(part, "a part of content") for part in parts]
    kinds = [_kind(part, request) for part in objects]
    has_images = has_images or "image" in kinds
    found: list[Slot] = []
    for part, kind in zip(objects, kinds, strict=True):
        check_keys(part, request, _VIDEO_KEYS if kind == "video" else _KEYS)
        if kind == "image":
            found.append(_image(part, role, request))
        elif kind == "video":
            found.append(_video(part, role, request))
        else:
            found += slots(_text(part), role, has_images, rules)
    return found


def image_in(value: Any, what: str, request: Request) -> Image | None:
    """The image that a path, or an object with one, names; None for an object without any."""
    if type(value) is not dict:
        return image_at(value, request, what)
    for key in PATH_KEYS:
        if value.get(key) is not None:
            inner = value[key]
            if key == "image_url":
                return image_in(inner, f"{what}.{key}", request)
            return image_at(inner, request, what if key == "image" else f"{what}.{key}")
    if value.get("bytes") is not None:
        raise RejectError("wrong_type", f"{what} holds bytes; expected a path, or images in the record's own column")
    return None


def _kind(part: dict[str, Any], request: Request) -> str:
    """ "text", "image" or "video"."""
    kind = part.get("type")
    if kind is None:
        names = given(part, ("text", *PATH_KEYS))
        if len(names) != 1:
            raise RejectError("missing_key", "a part of content has no type; expected text or image")
        return "text" if names[0] == "text" else "image"
    if type(kind) is str and kind in _TEXT:
        if names := given(part, PATH_KEYS):
            raise RejectError("bad_value", f"a part of the type {kind} has {names[0]}; expected text or an image")
        return "text"
    if type(kind) is str and kind in _IMAGE:
        if given(part, ("text",)):
            raise RejectError("bad_value", f"a part of the type {kind} has text; expected text or an image")
        return "image"
    if request.frames and type(kind) is str and kind in _VIDEO:
        return "video"
    if type(kind) is str and kind in _MEDIA:
        advice = f"; {ADVICE}" if kind in _VIDEO else ""
        raise RejectError("unread_media", f"a part of content has the type {kind}; expected text or image{advice}")
    raise RejectError("bad_value", f"a part of content has the type {show(kind)}; expected text, image or image_url")


def _text(part: dict[str, Any]) -> str:
    if "text" not in part:
        raise RejectError("missing_key", "a part of content has no key text")
    if type(part["text"]) is not str:
        raise RejectError("wrong_type", f"text is {show(part['text'])}; expected text")
    return part["text"]


def _video(part: dict[str, Any], role: Role, request: Request) -> Slot:
    """The video of a path, or the next of the record's videos."""
    if role not in ("user", "tool"):
        reason = "image_in_answer" if role == "assistant" else "unread_media"
        raise RejectError(reason, f"a turn of the {role} has a video among its parts; expected it only in questions")
    key = next((name for name in _VIDEO_PATHS if part.get(name) is not None), None)
    if key is None:
        return Mark.VIDEO
    value = part[key]
    return image_at(value["url"] if type(value) is dict and "url" in value else value, request, key)


def _image(part: dict[str, Any], role: Role, request: Request) -> Slot:
    if role == "assistant":
        raise RejectError(
            "image_in_answer", "an answer has an image among its parts; expected images only in questions"
        )
    if role == "system":
        raise RejectError("unread_media", "the system prompt has an image; expected images only in questions")
    index = part.get("index")
    image = image_in({key: part[key] for key in PATH_KEYS if part.get(key) is not None}, "image", request)
    if image is not None or index is None:
        return image
    if type(index) is not int:
        raise RejectError("wrong_type", f"index is {show(index)}; expected the number of an image, from 0")
    return index
