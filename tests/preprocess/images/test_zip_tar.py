"""Zip and tar: every published form is read, damage is found."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from preprocess.errors import DataError, RejectError
from preprocess.images import index as store_index
from preprocess.images import zip_tar as archives
from preprocess.images.stores import prepare_store
from tests.support.image_archives import (
    as_deflated_zip,
    as_tar,
    as_zip,
    opened,
    reason,
)


def test_a_zip_with_bytes_before_it_and_64_bit_sizes_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        with archive.open("a.jpg", "w", force_zip64=True) as member:
            member.write(b"photo")
        archive.comment = b"PK\6\6 a comment"
    (tmp_path / "a.zip").write_bytes(b"PK\3\4 something before" + buffer.getvalue())
    assert opened(tmp_path / "a.zip").read("a.jpg") == b"photo"


def test_a_zip_of_more_than_65535_members_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(66_000):
            archive.writestr(zipfile.ZipInfo(f"{number}"), b"x")
        archive.writestr("last", b"end")
    (tmp_path / "a.zip").write_bytes(buffer.getvalue())
    store = opened(tmp_path / "a.zip")
    assert store.read("last") == b"end"
    assert store.read("65999") == b"x"


def test_a_zip_entry_with_a_64_bit_offset_is_found(tmp_path: Path) -> None:
    as_zip(tmp_path / "a.zip", {"a.jpg": b"photo"})
    whole = (tmp_path / "a.zip").read_bytes()
    entry, end = whole.rindex(b"PK\1\2"), whole.rindex(b"PK\5\6")
    (offset,) = struct.unpack_from("<L", whole, entry + 42)
    assert offset

    def widened(extra: bytes) -> bytes:
        """The last entry with its offset in the extra field, as archives of more than 4 GiB have it."""
        header = bytearray(whole[entry:end])
        struct.pack_into("<H", header, 30, len(extra))
        struct.pack_into("<L", header, 42, 0xFFFFFFFF)
        tail = bytearray(whole[end:])
        struct.pack_into("<L", tail, 12, struct.unpack_from("<L", tail, 12)[0] + len(extra))
        return whole[:entry] + bytes(header) + extra + bytes(tail)

    other_field = struct.pack("<HHB", 9, 1, 0)
    (tmp_path / "b.zip").write_bytes(widened(other_field + struct.pack("<HHQ", 1, 8, offset)))
    assert opened(tmp_path / "b.zip").read("a.jpg") == b"photo"
    (tmp_path / "c.zip").write_bytes(widened(other_field + struct.pack("<HH", 1, 0)))
    with pytest.raises(DataError, match="zip64"):
        opened(tmp_path / "c.zip")


def test_one_part_of_a_split_zip_is_refused(tmp_path: Path) -> None:
    as_zip(tmp_path / "a.zip", {"a.jpg": b"photo"})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    struct.pack_into("<H", data, data.rindex(b"PK\1\2") + 34, 1)
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(DataError, match="one of several parts"):
        opened(tmp_path / "a.zip")


def test_a_zip_of_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    as_zip(tmp_path / "a.zip", {"a.jpg": b"photo"})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.rindex(b"PK\1\2") + 6] = 99
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.zip: the zip is of a newer format \(zip file version 9\.9\)"):
        opened(tmp_path / "a.zip")


def test_a_damaged_zip_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    as_deflated_zip(path, {"a.jpg": b"photo" * 100, "b.jpg": b"photo" * 100})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            prepare_store(path, tmp_path / "cache")
    for offset in range(len(whole)):  # one byte wrong: refused, missing, unreadable, or not part of the image
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x55]) + whole[offset + 1 :])
        os.utime(path, ns=(0, offset))
        with contextlib.suppress(DataError, RejectError):
            assert opened(path).read("a.jpg") == b"photo" * 100


def test_a_wrong_checksum_and_a_wrong_size_in_a_zip_are_unreadable() -> None:
    for packing in (store_index.Packing.ZIP_STORED, store_index.Packing.ZIP_DEFLATED):
        for crc, size in ((0, 5), (1, 4), (1, 6)):
            with pytest.raises(ValueError, match=r"expected|checksum|invalid|stored"):
                archives.zip_member(b"hello", packing, crc, size)


def test_encrypted_and_unusual_zip_members_are_unreadable(tmp_path: Path) -> None:
    as_zip(tmp_path / "a.zip", {"a": b"x"}, zipfile.ZIP_LZMA)
    assert reason(opened(tmp_path / "a.zip"), "a") == "image_unreadable"
    as_zip(tmp_path / "b.zip", {"a": b"x"})
    data = bytearray((tmp_path / "b.zip").read_bytes())
    data[data.rindex(b"PK\1\2") + 8] |= 1
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(RejectError, match="encrypted"):
        opened(tmp_path / "b.zip").read("a")


def test_zip_names_without_the_utf8_flag_are_read(tmp_path: Path) -> None:
    as_zip(tmp_path / "a.zip", {"xx.jpg": b"1", "yyy.jpg": b"2"})
    data = (tmp_path / "a.zip").read_bytes().replace(b"xx.jpg", "ü.jpg".encode()).replace(b"yyy.", b"y\x81y.")
    (tmp_path / "a.zip").write_bytes(data)
    store = opened(tmp_path / "a.zip")
    assert (store.read("ü.jpg"), store.read("yüy.jpg")) == (b"1", b"2")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_is_read_and_links_are_named(form: int, tmp_path: Path) -> None:
    long = "/".join(["folder"] * 30) + "/a.jpg"
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        for name in ("b.jpg", long):
            member = tarfile.TarInfo(name)
            member.size = 700
            archive.addfile(member, io.BytesIO(name.encode()[-5:] * 140))
        for name, kind in (("soft", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("folder", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "b.jpg"
            archive.addfile(member)
    store = opened(tmp_path / "a.tar")
    assert store.read("b.jpg") == b"b.jpg" * 140
    assert store.read(long) == b"a.jpg" * 140
    for name in ("soft", "hard"):
        with pytest.raises(RejectError, match=r"image_unreadable.*dereference"):
            store.read(name)
    assert reason(store, "folder") == "image_missing"


def test_a_tar_that_is_cut_off_is_a_data_error(tmp_path: Path) -> None:
    as_tar(tmp_path / "a.tar", {"a": b"x" * 700, "b": b"y" * 700})
    whole = (tmp_path / "a.tar").read_bytes()
    for length in [0, 100, 512, 600, 1024, 1535, 1536, 1537, 2047, 2048, 2100, 3071, 3072]:
        (tmp_path / "a.tar").write_bytes(whole[:length])
        with pytest.raises(DataError):
            prepare_store(tmp_path / "a.tar", tmp_path / "cache")
    broken = bytearray(whole)
    broken[1536 + 5] ^= 1  # the second header: its checksum is wrong now
    (tmp_path / "a.tar").write_bytes(broken)
    with pytest.raises(DataError, match="damaged or cut off at byte 1536"):
        prepare_store(tmp_path / "a.tar", tmp_path / "cache")


def test_an_empty_archive_is_an_empty_store(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(" {\n} ")
    tarfile.open(tmp_path / "a.tar", "w").close()
    zipfile.ZipFile(tmp_path / "a.zip", "w").close()
    for name in ("a.json", "a.tar", "a.zip"):
        with pytest.raises(RejectError, match=r"image_missing.*it is empty"):
            opened(tmp_path / name).read("a")
