"""The keys of records that name videos: files, or folders with their frames.

Rule: a video is read if the dataset shows evenly spaced frames of it (`frames: even:N`). Otherwise its record is a
reject that says so.
"""

from __future__ import annotations

from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.fields import show
from preprocess.adapters.parsing.keys import one_of
from preprocess.errors import RejectError

VIDEO_KEYS = ("video", "videos", "video_path", "video_paths", "video_file", "video_url")

ADVICE = "set frames: even:8 on the dataset to show 8 evenly spaced frames of each video"


def video_key(record: dict[str, Any], request: Request) -> str | None:
    """The key with the record's videos; None without one. Raises RejectError if the dataset shows no frames."""
    key = one_of(record, VIDEO_KEYS, "list of videos")
    if key is not None and not request.frames:
        raise RejectError(
            "unknown_key",
            f"key {show(key)} holds a video, which is not read; {ADVICE}, or keys: {{{show(key)}: ignore}} to leave it "
            "out",
        )
    return key
