"""Images inside JSON: data URIs and bare base64 text.

    data:image/jpeg;base64,/9j/4AAQ...      /9j/4AAQ...      iVBORw0KGgo...

Rule: a text is base64 only if it is long, has no other characters and begins as an encoded image does. Any other text
is a path.
"""

from __future__ import annotations

import binascii
import re

from preprocess.errors import RejectError

SHORTEST = 64
"""A text of fewer characters is not base64."""

_WHITE_SPACE = str.maketrans("", "", " \t\r\n")
# JPEG, PNG, GIF, WebP, BMP, TIFF and AVIF, by their first bytes
_IMAGE_START = re.compile(
    r"/9j/|iVBORw0KGgo|R0lGODdh|R0lGODlh|UklGR|Qk[0-3][A-Za-z0-9+/]|SUkqA|TU0AK|AAAA[A-Za-z0-9+/]{2}Z0eXB"
)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")


def image_data(value: str, what: str) -> bytes | None:
    """The bytes of an image that a text holds; None for a text that is a path or a URL. Raises RejectError."""
    if value[:5].lower() == "data:":
        head, comma, packed = value.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise RejectError(
                "image_unreadable", f"{what} is a data URI, {head[:60]!r}; expected data:image/...;base64,..."
            )
        return decoded(packed, what)
    if len(value) >= SHORTEST and _IMAGE_START.match(value) and _BASE64.fullmatch(value):
        return decoded(value, what)
    return None


def decoded(packed: str, what: str) -> bytes:
    """The bytes of base64 text, which may have line breaks. Raises RejectError."""
    try:
        data = binascii.a2b_base64(packed.translate(_WHITE_SPACE), strict_mode=True)
    except ValueError as error:
        raise RejectError("image_unreadable", f"{what} is not base64: {error}; got {packed[:40]!r}...") from None
    if not data:
        raise RejectError("image_unreadable", f"{what} has no bytes")
    return data
