"""The images of an MPO: JPEG files one after the other, of which the first has a list (CIPA DC-007).

Rule: they are found by their own structure, not by the list. Its offsets are often wrong: programs that add metadata to
a photo move the other images, and Pillow writes wrong ones from the fourth on (13.0.0).
"""

from __future__ import annotations

import re

MOST_IMAGES = 256
_START = b"\xff\xd8\xff"
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""What ends the data of a scan, in which FF00 is a byte and FFD0 to FFD7 are restarts"""
_SCAN, _END = 0xDA, 0xD9


def jpeg_files(data: bytes) -> list[bytes]:
    """The complete JPEG files in the data, the first at its start; at most MOST_IMAGES."""
    found: list[bytes] = []
    start = 0
    while start >= 0 and len(found) < MOST_IMAGES:
        end = _end_of_jpeg(data, start)
        if end is None:
            break
        found.append(data[start:end])
        start = data.find(_START, end)
    return found


def _end_of_jpeg(data: bytes, start: int) -> int | None:
    """Where the JPEG file that begins at `start` ends; None if it is cut off or broken."""
    place = start + 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _SCAN:
            match = _MARKER.search(data, place)
            if match is None:
                return None
            place = match.start()
        if data[place : place + 2] == bytes((0xFF, _END)):
            return place + 2
    return None
