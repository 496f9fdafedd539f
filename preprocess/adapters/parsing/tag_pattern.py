"""How tags of images, videos and sounds look in published texts."""

from __future__ import annotations

import re
from functools import lru_cache

MARKER = "<image>"
"""Stands for the next image of a record."""

OTHER_KINDS = frozenset(
    ("video", "video_pad", "audio", "audio_pad", "audio_bos", "speech", "sound", "ref-object", "bbox")
)
"""Kinds of tags that stand for something else than an image."""

VIDEO_KINDS = frozenset(("video", "video_pad"))

_TAGS = (
    r"<img>(?P<path>[^<>]+)</img>"
    r"|<\|?(?P<kind>image|img|imagehere|image_placeholder|image_pad|img_context|vision_start|video|video_pad|audio"
    r"|audio_pad|audio_bos|speech|sound|ref-object|bbox)(?:[-_ ]?(?P<number>\d{1,4}))?\|?>"
)


@lru_cache(maxsize=16)
def tag_pattern(marker: str) -> re.Pattern[str]:
    """Matches the marker or another tag. Groups: path (`<img>a.jpg</img>`); kind and number (`<image_1>`).

    All alternatives begin with the same "<", by which a search skips the rest of a text quickly.
    """
    return re.compile(f"{re.escape(marker)}|{_TAGS}", re.IGNORECASE)


def tag_in(words: str) -> str | None:
    """The first tag of a text."""
    if "<" not in words:  # nearly all texts
        return None
    match = tag_pattern(MARKER).search(words)
    return match[0] if match else None
