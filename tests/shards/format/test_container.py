"""The bytes of a shard: headers as tarfile reads them, token arrays as numpy writes them, and nothing else."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.format.container import (
    END_OF_ARCHIVE,
    MAX_MEMBER_BYTES,
    decode_tokens,
    encode_tokens,
    member_names,
    members,
    npy_header,
    padding,
    tar_header,
)
from shards.format.writer import ShardWriter
from tests.support import handmade_builds

GOLDEN_BRANCHES = "3b47b331223ca6397612098b9381323360e95731d4c5851a349274ed401c5f76"
GOLDEN_TAR = "7cebdb6b573eef56736d8685853b6aa503b8b251b0902468936c1a249a6f2245"


def numpy_bytes(array: np.ndarray, *, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


@given(
    files=st.lists(
        st.tuples(st.from_regex(r"[a-z0-9_.-]{1,100}", fullmatch=True), st.binary(max_size=1500)), max_size=5
    )
)
def test_tarfile_reads_the_headers_we_write(files: list[tuple[str, bytes]]) -> None:
    archive = b"".join(tar_header(name, len(data)) + data + padding(len(data)) for name, data in files)
    with tarfile.open(fileobj=io.BytesIO(archive + END_OF_ARCHIVE), mode="r:") as tar:
        for (name, data), member in zip(files, tar.getmembers(), strict=True):
            content = tar.extractfile(member)
            assert content is not None
            assert (member.name, content.read()) == (name.rstrip("/"), data)
            assert (member.mode, member.uid, member.gid, member.mtime, member.type) == (0o644, 0, 0, 0, tarfile.REGTYPE)
            assert (member.uname, member.gname, member.linkname) == ("", "", "")


@given(name=st.from_regex(r"[a-z0-9_-]{1,80}\.json", fullmatch=True), size=st.integers(0, MAX_MEMBER_BYTES))
def test_a_header_is_the_one_tarfile_writes_for_the_same_facts(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    ours, theirs = tar_header(name, size), info.tobuf(format=tarfile.USTAR_FORMAT)
    # Device numbers mean nothing for files: tarfile leaves them empty, GNU tar and we write 0.
    for part in (slice(0, 148), slice(156, 329), slice(345, 512)):
        assert ours[part] == theirs[part]


def test_names_over_100_bytes_and_members_over_8_gib_are_refused() -> None:
    assert len(tar_header("n" * 100, MAX_MEMBER_BYTES)) == 512
    with pytest.raises(ValueError, match="101 name bytes"):
        tar_header("n" * 101, 0)
    with pytest.raises(ValueError, match="8589934592 bytes; expected up to 100 and 8 GiB"):
        tar_header("name", MAX_MEMBER_BYTES + 1)
    with pytest.raises(ValueError, match="ascii"):
        tar_header("größe", 0)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024])
def test_padding_fills_up_to_the_next_block(size: int) -> None:
    assert (size + len(padding(size))) % 512 == 0
    assert len(padding(size)) < 512
    assert not any(padding(size))


@given(st.lists(st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 3), max_size=300), st.sampled_from([2, 3]))
def test_tokens_are_written_as_numpy_writes_them_and_come_back(tokens: list[tuple[int, ...]], rows: int) -> None:
    array = np.array(tokens, dtype=np.int32).reshape(-1, 3).T[:rows]
    data = encode_tokens(array)
    assert data == numpy_bytes(np.ascontiguousarray(array), version=(1, 0))
    assert np.array_equal(np.load(io.BytesIO(data)), array)
    assert np.array_equal(decode_tokens(data, array.shape[1]), array)


@pytest.mark.parametrize("rows", [2, 3])
@pytest.mark.parametrize("num_tokens", [0, 1, 9, 10, 99, 2048, 99_999, 10**6, 2**31, 10**12, 10**18])
def test_the_header_of_any_number_of_tokens_is_numpys(rows: int, num_tokens: int) -> None:
    file = io.BytesIO()
    fields = {"descr": "<i4", "fortran_order": False, "shape": (rows, num_tokens)}
    np.lib.format.write_array_header_1_0(file, fields)
    assert npy_header(rows, num_tokens) == file.getvalue()
    assert len(npy_header(rows, num_tokens)) % 64 == 0


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 3)), np.zeros((2, 3), np.int64), np.zeros((4, 2), np.int32), np.zeros(4, np.int32)],
    ids=["float64", "int64", "four rows", "one dimension"],
)
def test_tokens_of_another_type_or_shape_are_not_written(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected int32 \[2, T\]"):
        encode_tokens(array)


REFUSED = {
    "int64": numpy_bytes(np.zeros((2, 4), np.int64)),
    "uint32": numpy_bytes(np.zeros((2, 4), np.uint32)),
    "big-endian": numpy_bytes(np.zeros((2, 4), ">i4")),
    "float32": numpy_bytes(np.zeros((2, 4), np.float32)),
    "Fortran order": numpy_bytes(np.asfortranarray(np.arange(8, dtype=np.int32).reshape(2, 4))),
    "four rows": numpy_bytes(np.zeros((4, 4), np.int32)),
    "one row": numpy_bytes(np.zeros((1, 4), np.int32)),
    "one dimension": numpy_bytes(np.zeros(8, np.int32)),
    "version 2.0": numpy_bytes(np.zeros((2, 4), np.int32), version=(2, 0)),
    "version 3.0": numpy_bytes(np.zeros((2, 4), np.int32), version=(3, 0)),
    "another magic": b"\x94" + encode_tokens(np.zeros((2, 4), np.int32))[1:],
    "a byte too many": encode_tokens(np.zeros((2, 4), np.int32)) + b"\0",
    "a column too many": encode_tokens(np.zeros((2, 4), np.int32)) + bytes(8),
    "nothing": b"",
    "a pickle": numpy_bytes(np.array([[1], [None]], dtype=object)),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_an_array_file_that_we_do_not_write_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\.npy"):
        decode_tokens(data, 4)


def test_an_array_file_cut_anywhere_is_refused() -> None:
    data = encode_tokens(np.arange(6, dtype=np.int32).reshape(2, 3))
    for end in range(len(data)):
        with pytest.raises(ValueError, match=r"\.npy"):
            decode_tokens(data[:end], 3)


@given(st.binary(max_size=300), st.integers(0, 140), st.integers(0, 7))
def test_damaged_array_files_are_refused_or_differ_only_in_their_numbers(junk: bytes, place: int, bit: int) -> None:
    with pytest.raises(ValueError, match=r"\.npy"):
        decode_tokens(junk, len(junk) // 8)
    data = bytearray(encode_tokens(np.arange(6, dtype=np.int32).reshape(2, 3)))
    data[place] ^= 1 << bit
    if place < 128:
        with pytest.raises(ValueError, match=r"\.npy"):
            decode_tokens(bytes(data), 3)
    else:
        assert decode_tokens(bytes(data), 3).shape == (2, 3)


def test_decoding_does_not_copy() -> None:
    data = encode_tokens(np.arange(6, dtype=np.int32).reshape(2, 3))
    assert np.shares_memory(decode_tokens(data, 3), np.frombuffer(data, np.uint8))


def test_members_are_named_by_key_in_the_order_of_the_format() -> None:
    assert member_names("a-1", ["jpg", "png"]) == ["a-1.json", "a-1.tokens.npy", "a-1.0.jpg", "a-1.1.png"]


def region_of(contents: dict[str, bytes]) -> tuple[bytes, list[int], list[int]]:
    region, starts = b"", []
    for name, content in contents.items():
        starts.append(len(region) + 512)
        region += tar_header(name, len(content)) + content + padding(len(content))
    return region, starts, [len(content) for content in contents.values()]


def test_members_are_found_only_where_headers_contents_and_padding_fill_the_region() -> None:
    contents = {"k.json": b"{}", "k.tokens.npy": b"x" * 600, "k.0.jpg": b"", "k.1.png": b"p" * 512}
    region, starts, sizes = region_of(contents)
    assert [bytes(one) for one in members("k", region, starts, sizes)] == list(contents.values())
    for number in range(len(starts)):
        for change in (-512, -1, 1, 512, 2**63):
            for moved in ([starts, sizes], [sizes, starts]):
                changed = list(moved[0])
                changed[number] += change
                pair = (changed, sizes) if moved[0] is starts else (starts, changed)
                with pytest.raises(ValueError, match="member"):
                    members("k", region, *pair)
    for key, first, second in [("other", starts, sizes), ("k", starts[:-1], sizes[:-1]), ("k", starts, sizes[:-1])]:
        with pytest.raises(ValueError, match="member"):
            members(key, region, first, second)


@pytest.mark.parametrize(
    "names", [["k.tokens.npy", "k.json"], ["k.json", "k.tokens.npy", "k.1.jpg"], ["k.json", "k.tokens.npy", "l.0.jpg"]]
)
def test_members_out_of_order_or_of_another_sample_are_refused(names: list[str]) -> None:
    region, starts, sizes = region_of(dict.fromkeys(names, b"x"))
    with pytest.raises(ValueError, match="member"):
        members("k", region, starts, sizes)


def test_the_format_has_not_drifted(tmp_path: Path) -> None:
    """If this fails, the format changed: readers of old builds must be thought of, and FORMAT.md's version raised."""
    tokens = np.array([[1, handmade_builds.IMAGE_ID, 7, 2], [-100, -100, 7, 2]], dtype=np.int32)
    sample = handmade_builds.Draft(
        key="golden-000000000",
        metadata={"id": "1", "dataset": "golden", "split": "train", "sources": [], "images": []},
        tokens=tokens,
        images=(("jpg", handmade_builds.JPEG + b"picture"),),
        groups=("coco:1",),
        trained_tokens=2,
    )
    info = handmade_builds.write_shard(tmp_path, [sample], dataset="golden")
    assert info is not None
    data = (tmp_path / info.path).read_bytes()
    assert hashlib.sha256(data).hexdigest() == GOLDEN_TAR
    assert len(data) == info.size == 8 * 512
    assert data[:16] == b"golden-000000000"
    assert data[257:265] == b"ustar\x0000"


def test_the_format_of_samples_with_branches_has_not_drifted(tmp_path: Path) -> None:
    alone = handmade_builds.branched_draft(0, branches=1)
    joined = handmade_builds.branched_draft(1, branches=3)
    info = handmade_builds.write_shard(tmp_path, [alone, joined])
    assert info is not None
    assert info.branches == (1, 0, 1)
    assert hashlib.sha256((tmp_path / info.path).read_bytes()).hexdigest() == GOLDEN_BRANCHES


def test_samples_with_fewer_branches_come_first(tmp_path: Path) -> None:
    two, one = (handmade_builds.branched_draft(number, branches=count) for number, count in enumerate((2, 1)))
    writer = ShardWriter(tmp_path, "shards/alpha", "train-00000")
    rest: dict[str, Any] = {"metadata": {}, "images": (), "trained_tokens": 2, "groups": ()}
    writer.add(two.key, tokens=two.tokens, **rest)
    with pytest.raises(ValueError, match="has 1 branches, the one before 2; sort them"):
        writer.add(one.key, tokens=one.tokens, **rest)
    writer.discard()
