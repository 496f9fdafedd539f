"""Find the images in a zip or a tar: where each member's bytes lie.

Rule: a zip's central directory is read in one piece and a tar is walked header by header; no member is unpacked, and
memory holds no object per member (Python's own ZipInfo and TarInfo lists take about a kilobyte each).
"""

from __future__ import annotations

import struct
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

from preprocess.errors import DataError
from preprocess.images.index import IndexBuilder, Packing

# APPNOTE.TXT of PKWARE, sections 4.3.7 (local header), 4.3.12 (central header), 4.3.14 to 4.3.16 (ends).
_LOCAL = struct.Struct("<4s5HLLLHH")
_CENTRAL = struct.Struct("<4s6HLLLHHHHHLL")
_END = struct.Struct("<4s4HLLH")
_END_64 = struct.Struct("<4sQHHLLQQQQ")
_LOCATOR_64 = struct.Struct("<4sLQL")
_MAX_COMMENT_BYTES = 65535
_STORED, _DEFLATED = 0, 8
_ENCRYPTED_FLAGS = 0x0001 | 0x0040 | 0x2000


def index_zip(path: Path, index: IndexBuilder) -> None:
    """Add every file of the central directory. Raises DataError if it is damaged, cut off or in several parts."""
    with path.open("rb") as file:
        start, size, count, shift = _central_directory(path, file)
        file.seek(start)
        directory = file.read(size)
    at = num_entries = 0
    while at < len(directory):
        if directory[at : at + 4] != b"PK\1\2" or at + _CENTRAL.size > size:
            raise DataError(f"{path}: damaged zip: wanted a directory entry at byte {start + at}")
        num_entries += 1
        (_, _, _, flags, method, _, _, crc, packed, unpacked, name_size, extra_size, comment_size, _, _, _, offset) = (
            _CENTRAL.unpack_from(directory, at)
        )
        at += _CENTRAL.size
        name = directory[at : at + name_size]
        extra = directory[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment_size
        if 0xFFFFFFFF in (packed, unpacked, offset):
            unpacked, packed, offset = _wide(path, extra, unpacked, packed, offset)
        if name.endswith(b"/"):
            continue
        index.add(_key(_decode(name)), offset + shift, packed, _zip_packing(flags, method), crc, unpacked)
    if num_entries & 0xFFFF != count & 0xFFFF:  # old tools count to 65535 and start again
        raise DataError(f"{path}: damaged zip: got {num_entries} directory entries, wanted {count}")


def zip_member(packed: bytes, packing: int, crc: int, unpacked_size: int) -> bytes:
    """Unpack one member. Raises ValueError for bytes that are not what the directory says."""
    data = packed
    if packing == Packing.ZIP_DEFLATED:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflate.decompress(packed, unpacked_size + 1)  # one more tells a bomb; 0 would mean no limit
        except zlib.error as error:
            raise ValueError(str(error)) from None
    if len(data) != unpacked_size:
        raise ValueError(f"got {len(data)} bytes or more, wanted {unpacked_size}")
    if zlib.crc32(data) != crc:
        raise ValueError("the checksum is wrong")
    return data


LOCAL_HEADER_BYTES = _LOCAL.size


def zip_data_offset(header: bytes, offset: int) -> int:
    """Where a member's bytes start, by its local header. Raises ValueError if there is none."""
    if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
        raise ValueError(f"wanted a member's header at byte {offset}")
    *_, name_size, extra_size = _LOCAL.unpack(header)
    return offset + _LOCAL.size + int(name_size) + int(extra_size)


def index_tar(path: Path, index: IndexBuilder) -> None:
    """Add every file. Raises DataError for a tar that is damaged or cut off."""
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]
                if member.isreg() or member.issym() or member.islnk():
                    index.add(_key(member.name), member.offset_data, member.size, _tar_packing(member))
            end = tar.offset
    except tarfile.TarError as error:
        raise DataError(f"{path}: damaged tar: {error}") from None
    with path.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a broken header for the end
            raise DataError(f"{path}: the tar is damaged or cut off at byte {end}: wanted a header or the end mark")


def _central_directory(path: Path, file: BinaryIO) -> tuple[int, int, int, int]:
    """Its start, its size, the number of entries, and how many bytes stand before the archive."""
    tail_size = min(file.seek(0, 2), _END.size + _MAX_COMMENT_BYTES + _LOCATOR_64.size + _END_64.size)
    tail_start = file.seek(-tail_size, 2)
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or end + _END.size > len(tail):
        raise DataError(f"{path}: the zip is cut off: it has no end record; download or pack it again")
    _, disk, _, _, count, size, start, _ = _END.unpack_from(tail, end)
    before = tail_start + end
    locator = end - _LOCATOR_64.size
    wide = locator - _END_64.size
    if wide >= 0 and tail[locator : locator + 4] == b"PK\6\7" and tail[wide : wide + 4] == b"PK\6\6":
        _, _, _, _, disk, _, _, count, size, start = _END_64.unpack_from(tail, wide)
        before = tail_start + wide
    shift = before - size - start
    if disk or shift < 0:
        raise DataError(f"{path}: the zip is one of several parts, or damaged; wanted a whole one")
    return start + shift, size, count, shift


def _wide(path: Path, extra: bytes, unpacked: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The 64-bit values of an entry; the extra field holds only those that do not fit into 32 bits, in this order."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            values = [value for (value,) in struct.iter_unpack("<Q", extra[at + 4 : at + 4 + size // 8 * 8])]
            try:
                wide = [values.pop(0) if value == 0xFFFFFFFF else value for value in (unpacked, packed, offset)]
            except IndexError:
                break
            return wide[0], wide[1], wide[2]
        at += 4 + size
    raise DataError(f"{path}: damaged zip: an entry lacks its 64-bit sizes")


def _zip_packing(flags: int, method: int) -> Packing:
    if flags & _ENCRYPTED_FLAGS:
        return Packing.ENCRYPTED
    return {_STORED: Packing.ZIP_STORED, _DEFLATED: Packing.ZIP_DEFLATED}.get(method, Packing.METHOD)


def _tar_packing(member: tarfile.TarInfo) -> Packing:
    if member.issym() or member.islnk():
        return Packing.LINK
    return Packing.SPARSE if member.issparse() else Packing.RAW


def _decode(name: bytes) -> str:
    """Many zips hold UTF-8 names without the flag that says so; what is not UTF-8 is the format's own code page 437."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("cp437")


def _key(name: str) -> str:
    """`tar -c .` writes ./a.jpg; an annotation says a.jpg."""
    while name.startswith("./"):
        name = name[2:]
    return name
