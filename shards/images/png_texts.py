"""PNG chunks of text and colour profiles, without those that Pillow refuses to unpack.

Pillow raises for a text or a profile of more than 1 MB, and for 64 MB of them together (PngImagePlugin.MAX_TEXT_CHUNK,
MAX_TEXT_MEMORY), although no pixel depends on them. Drawing programs write such texts. Source of the layouts: PNG
specification (third edition), 11.3.2.3 iCCP and 11.3.3 textual information.
"""

from __future__ import annotations

import struct
import zlib

MAX_CHUNK_BYTES = 1 << 20
MAX_BYTES = 32 << 20
"""Of all texts of a file, unpacked: bounds the work that a small file can ask for"""

_SIGNATURE_BYTES = 8
_HEADER = struct.Struct(">I4s")
_CHECKSUM_BYTES = 4
_TEXTS = frozenset((b"tEXt", b"zTXt", b"iTXt", b"iCCP"))


def without_large_texts(data: bytes) -> bytes:
    """The file without chunks whose text has more than MAX_CHUNK_BYTES, or that follow MAX_BYTES of text.

    `data` itself where there is none, as in nearly every file.
    """
    dropped: list[tuple[int, int]] = []
    offset, unpacked = _SIGNATURE_BYTES, 0
    while offset + _HEADER.size <= len(data):
        length, kind = _HEADER.unpack_from(data, offset)
        end = offset + _HEADER.size + length + _CHECKSUM_BYTES
        if kind in _TEXTS:
            size = MAX_CHUNK_BYTES + 1
            if length <= MAX_CHUNK_BYTES and unpacked <= MAX_BYTES:
                size = _text_bytes(kind, data[offset + _HEADER.size : end - _CHECKSUM_BYTES])
            if size > MAX_CHUNK_BYTES or unpacked + size > MAX_BYTES:
                dropped.append((offset, end))
            unpacked += size
        offset = end
    if not dropped:
        return data
    parts, start = [], 0
    for first, end in dropped:
        parts.append(data[start:first])
        start = end
    return b"".join([*parts, data[start:]])


def _text_bytes(kind: bytes, content: bytes) -> int:
    """The size of the unpacked text; more than MAX_CHUNK_BYTES, which is where unpacking stops, counts as one more."""
    _, _, rest = content.partition(b"\0")  # behind the keyword or the profile's name
    if kind == b"tEXt" or (kind == b"iTXt" and rest[:1] != b"\1"):
        return len(content)
    packed = rest[1:]  # behind the method
    if kind == b"iTXt":
        packed = packed[1:].partition(b"\0")[2].partition(b"\0")[2]  # and method, language, translated keyword
    try:
        return len(zlib.decompressobj().decompress(packed, MAX_CHUNK_BYTES + 1))
    except zlib.error:  # Pillow ignores such a text
        return len(content)
