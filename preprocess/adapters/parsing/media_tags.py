"""Tags in texts that stand for images, videos and sounds: `<image>`, `<image_1>`, `<img>a.jpg</img>`, `<video>`.

Rule: in a question, a tag of an image becomes the image, and `<video>` the next of the record's videos. Any other tag,
or one without its image, makes the record a reject, so that none is trained as a word. With the option
`media_tags: text` such a tag is plain text. A line break next to an image's tag is removed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from preprocess.adapters.base import Option, Request
from preprocess.adapters.parsing.fields import image_at, image_name, is_text, show
from preprocess.adapters.parsing.tag_pattern import MARKER, OTHER_KINDS, VIDEO_KINDS, tag_pattern
from preprocess.conversation import Image, Role
from preprocess.errors import RejectError


class Mark(Enum):
    """Stands for the next of the record's videos."""

    VIDEO = "video"


Slot = str | Image | int | Mark | None
"""A part of a message. None is a marker, for the next of the record's images; a number names one of them."""

MEDIA_TAGS = Option(
    default="reject",
    choices=("reject", "text"),
    help="What to do with a tag such as <video>, or with <image> where no image can be. Set text for conversations "
    "about HTML or about such tags: it keeps them as words.",
)
IMAGE_MARKER = Option(
    default=MARKER,
    help="The text that stands for an image in questions. Set it if your data has another, such as <ImageHere>.",
)

_AS_TEXT = "; the adapter's option media_tags: text keeps such tags as words"


@dataclass(frozen=True, slots=True)
class TagRules:
    """marker: stands for the next image. refuses: whether a tag without its image is a reject; else it is text.

    has_videos: whether the record names videos that `<video>` can stand for.
    """

    marker: str = MARKER
    refuses: bool = True
    request: Request | None = None
    has_videos: bool = False

    @classmethod
    def of(cls, request: Request) -> TagRules:
        """The rules that an adapter's options ask for."""
        return cls(request.options.get("marker", MARKER), request.options.get("media_tags") != "text", request)

    def image(self, path: str) -> Image:
        """The image at the path of `<img>path</img>`."""
        what = "the path of <img>"
        return Image(name=image_name(path, what)) if self.request is None else image_at(path, self.request, what)


STRICT = TagRules()


def slots(value: Any, role: Role, has_images: bool, rules: TagRules = STRICT) -> list[Slot]:
    """Text split at its tags. has_images: whether the record names images that they can stand for."""
    if type(value) is not str:
        raise RejectError("wrong_type", f"a turn of the {role} is {show(value)}; expected text")
    if not is_text(value):
        raise RejectError("bad_text", f"a turn of the {role} contains a lone surrogate; expected Unicode text")
    if "<" not in value and rules.marker not in value:  # nearly all turns
        return [value]
    if has_images and role == "user" and value.count("<") == 1 and rules.marker == MARKER:
        before, marker, after = value.partition(MARKER)
        if marker and not before:
            return ["", None, after[1:] if after[:1] == "\n" else after.removeprefix("\r\n")]
    pieces: list[Slot] = []
    start = 0
    for match in tag_pattern(rules.marker).finditer(value):
        slot = _slot(match, role, has_images, rules)
        if type(slot) is not str:
            pieces += [_without_last_break(value[start : match.start()]), slot]
            start = match.end()
            start += 2 if value.startswith("\r\n", start) else value.startswith("\n", start)
    pieces.append(value[start:])
    return pieces


def _slot(match: re.Match[str], role: Role, has_images: bool, rules: TagRules) -> Slot:
    """What a tag stands for; its own text if it is a word."""
    tag = match[0]
    is_image = (match["kind"] or "image").lower() not in OTHER_KINDS
    if role in ("user", "tool") and is_image:
        if has_images and tag == rules.marker:
            return None
        if has_images and match["number"] is not None:
            return int(match["number"])
        if match["path"] is not None:
            return rules.image(match["path"].strip())
    is_video = (match["kind"] or "").lower() in VIDEO_KINDS and match["number"] is None
    if rules.has_videos and role in ("user", "tool") and is_video:
        return Mark.VIDEO
    if not rules.refuses:
        return tag
    if not is_image or role == "system":
        raise RejectError("unread_media", f"a turn of the {role} has the tag {show(tag)}, which is not read{_AS_TEXT}")
    if role == "assistant":
        raise RejectError(
            "image_in_answer", f"an answer has the tag {show(tag)}; expected images in questions{_AS_TEXT}"
        )
    if has_images:
        raise RejectError(
            "unread_media",
            f"a turn of the {role} has the tag {show(tag)}; expected {rules.marker}; if the tag stands for an image, "
            f"set the adapter's option marker{_AS_TEXT}",
        )
    raise RejectError(
        "image_count", f"a turn of the {role} has the tag {show(tag)}, and the record names no image{_AS_TEXT}"
    )


def _without_last_break(piece: str) -> str:
    return piece[:-2] if piece.endswith("\r\n") else piece.removesuffix("\n")
