"""Find the images in a zip or a tar: where the bytes of each member are.

`zipfile` reads the directory of a zip, `tarfile` the headers of a tar; no member is unpacked for that. Neither library
can read one member by its offset, so that part is written here. A `ZipFile` reads the whole directory when it is opened
and keeps an object of about 600 bytes per member: seconds and 125 MB for 200,000 images, in every worker process. With
the index on disk, a worker needs one search and two reads per image: `zip_data_offset` (30 bytes of the member's own
header) and `zip_member` (zlib and crc32 from the standard library).

Untrusted archives: names are only keys of the index, never paths on disk. A member is unpacked into memory up to the
size that the directory states, and not at all above the limit of stores.py. Links and encrypted members are rejected.
"""

from __future__ import annotations

import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from preprocess.containers.tar import member_key, tar_members
from preprocess.errors import DataError
from preprocess.images.index import ArchiveIndexBuilder, Packing

# APPNOTE.TXT of PKWARE, section 4.3.7 (local header) and 4.4.4 (flags)
_LOCAL = struct.Struct("<4s5HLLLHH")
_LOCAL_MAGIC = b"PK\3\4"
_ENCRYPTED_FLAGS = 0x0001 | 0x0040 | 0x2000
_UTF8_FLAG = 0x0800
_PACKINGS = {zipfile.ZIP_STORED: Packing.ZIP_STORED, zipfile.ZIP_DEFLATED: Packing.ZIP_DEFLATED}
_DAMAGED = (zipfile.BadZipFile, ValueError, struct.error)
"""What zipfile raises for bytes that are not a directory: ValueError for names that are not UTF-8, among others"""


def index_zip(path: Path, index: ArchiveIndexBuilder) -> None:
    """Add every file of the directory. Raises DataError if it is damaged, cut off or in several parts."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except NotImplementedError as error:
        raise DataError(
            f"{path}: the zip is of a newer format ({error}); expected 6.3 or older: pack it again"
        ) from None
    except _DAMAGED as error:
        raise DataError(f"{path}: the zip is damaged or cut off ({error}); download or pack it again") from None
    for member in members:
        if member.volume:
            raise DataError(f"{path}: the zip is one of several parts; expected a single file: join the parts first")
        if member.header_offset < 0:  # zipfile shifts all offsets to where the directory really is
            raise DataError(f"{path}: damaged zip: its end record has a wrong offset; download or pack it again")
        if not member.is_dir():
            index.add(
                member_key(_name(member)),
                member.header_offset,
                member.compress_size,
                _zip_packing(member),
                member.CRC,
                member.file_size,
            )


def zip_member(packed: bytes, packing: int, crc: int, unpacked_size: int) -> bytes:
    """Unpack one member. Raises ValueError for bytes that are not what the directory says."""
    data = packed
    if packing == Packing.ZIP_DEFLATED:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflate.decompress(packed, unpacked_size + 1)  # one more byte shows a bomb; 0 would mean no limit
        except zlib.error as error:
            raise ValueError(str(error)) from None
    if len(data) != unpacked_size:
        raise ValueError(f"got {len(data)} bytes or more, expected {unpacked_size}")
    if zlib.crc32(data) != crc:
        raise ValueError("the checksum is wrong")
    return data


LOCAL_HEADER_BYTES = _LOCAL.size


def zip_data_offset(header: bytes, offset: int) -> int:
    """Where a member's bytes start, from its local header at `offset`. Raises ValueError if it is not a header."""
    if len(header) < _LOCAL.size or not header.startswith(_LOCAL_MAGIC):
        raise ValueError(f"expected a member's header at byte {offset}")
    *_, name_size, extra_size = _LOCAL.unpack_from(header)
    return offset + _LOCAL.size + int(name_size) + int(extra_size)


def index_tar(path: Path, index: ArchiveIndexBuilder) -> None:
    """Add every file. Raises DataError for a tar that is damaged or cut off, with the byte where that shows."""
    for member in tar_members(path):
        index.add(member_key(member.name), member.offset_data, member.size, _tar_packing(member))


def _zip_packing(member: zipfile.ZipInfo) -> Packing:
    if member.flag_bits & _ENCRYPTED_FLAGS:
        return Packing.ENCRYPTED
    return _PACKINGS.get(member.compress_type, Packing.METHOD)


def _tar_packing(member: tarfile.TarInfo) -> Packing:
    if member.issym() or member.islnk():
        return Packing.LINK
    return Packing.SPARSE if member.issparse() else Packing.RAW


def _name(member: zipfile.ZipInfo) -> str:
    """Many zips hold UTF-8 names without the flag for it, which zipfile then reads as the format's code page 437."""
    if not member.flag_bits & _UTF8_FLAG:
        try:
            return member.filename.encode("cp437").decode("utf-8")
        except UnicodeError:
            pass
    return member.filename
