"""The bytes of a sample: tar members and the token array, byte for byte as FORMAT.md says.

Rule: the same sample always gives the same bytes. Headers hold no time, no owner and no random part.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
MAX_MEMBER_BYTES = 8**11 - 1  # eleven octal digits in a ustar header

IGNORE = -100
"""The label of a token that is not trained"""

_ROWS = (2, 3)
"""Of a token array: ids, labels and, in samples with branches, branch numbers"""

_MAGIC = b"\x93NUMPY\x01\x00"


def tar_header(name: str, size_bytes: int) -> bytes:
    """A ustar header (POSIX.1-1988): 512 bytes for a regular file of mode 0644, owner 0, time 0.

    Raises ValueError for a name over 100 bytes or a file over 8 GiB, which plain ustar cannot hold.
    """
    encoded = name.encode("ascii")
    if len(encoded) > 100 or size_bytes > MAX_MEMBER_BYTES:
        raise ValueError(
            f"tar member {name}: {len(encoded)} name bytes, {size_bytes} bytes; expected up to 100 and 8 GiB"
        )
    header = b"".join(
        (
            encoded.ljust(100, b"\0"),
            b"0000644\0" + b"0000000\0" * 2,
            b"%011o\0" % size_bytes,
            b"00000000000\0",
            b"        ",
            b"0",
            bytes(100),
            b"ustar\x0000",
            bytes(64),
            b"0000000\0" * 2,
            bytes(167),
        )
    )
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def padding(size_bytes: int) -> bytes:
    """Zeros up to the next block border."""
    return bytes(-size_bytes % BLOCK)


def encode_tokens(tokens: npt.NDArray[np.int32]) -> bytes:
    """An .npy file, format 1.0, of an int32 array [2, T], or [3, T] with branches.

    Raises ValueError for another type or shape.
    """
    if tokens.dtype != np.int32 or tokens.ndim != 2 or tokens.shape[0] not in _ROWS:
        raise ValueError(f"tokens are {tokens.dtype} {list(tokens.shape)}; expected int32 [2, T] or [3, T]")
    return npy_header(*tokens.shape) + tokens.astype("<i4", copy=False).tobytes()


@lru_cache(maxsize=8192)
def npy_header(rows: int, num_tokens: int) -> bytes:
    """The header before the data of an int32 array [rows, num_tokens], filled up to 64 bytes.

    Source: numpy.lib.format's page.
    """
    fields = f"{{'descr': '<i4', 'fortran_order': False, 'shape': ({rows}, {num_tokens}), }}".encode()
    fields = fields + b" " * (-(len(_MAGIC) + 2 + len(fields) + 1) % 64) + b"\n"
    return _MAGIC + len(fields).to_bytes(2, "little") + fields


def decode_tokens(data: bytes | memoryview, num_tokens: int) -> npt.NDArray[np.int32]:
    """The array [2, num_tokens] or [3, num_tokens] inside, without a copy.

    Raises ValueError for what `encode_tokens` does not write.
    """
    for rows in _ROWS:
        header = npy_header(rows, num_tokens)
        if len(data) == len(header) + 4 * rows * num_tokens and data[: len(header)] == header:
            return np.frombuffer(data, "<i4", rows * num_tokens, len(header)).reshape(rows, num_tokens)
    raise ValueError(f"{len(data)} bytes that are no .npy file of int32 [2, {num_tokens}] in C order, nor of [3, ...]")


def member_names(key: str, extensions: Sequence[str]) -> list[str]:
    """A sample's files in their order: metadata, tokens, then images by number."""
    images = [f"{key}.{number}.{extension}" for number, extension in enumerate(extensions)]
    return [f"{key}.json", f"{key}.tokens.npy", *images]


def members(key: str, region: bytes, starts: Sequence[int], sizes: Sequence[int]) -> list[memoryview]:
    """The contents of a sample's members. Raises ValueError unless they and their headers make up the whole region.

    Of a header, name and size are compared: the region's checksum vouches for the rest, and `verify` reads it all.
    """
    if len(starts) != len(sizes) or len(starts) < 2:
        raise ValueError(f"the index has {len(starts)} member offsets and {len(sizes)} member sizes")
    names = [f"{name}\0" for name in member_names(key, ())]
    names += [f"{key}.{number}." for number in range(len(starts) - 2)]
    end, contents, view = 0, [], memoryview(region)
    for number, (name, start, size) in enumerate(zip(names, starts, sizes, strict=True)):
        written = region.startswith(name.encode(), end) and region[end + 124 : end + 135] == b"%011o" % size
        if start != end + BLOCK or not written:
            raise ValueError(f"its member {number} is not where the index says, or not written as the format says")
        contents.append(view[start : start + size])
        end = start + size + -size % BLOCK
    if end != len(region):
        raise ValueError(f"its members fill {end} bytes of {len(region)}")
    return contents


def check_headers(key: str, region: bytes, starts: Sequence[int], sizes: Sequence[int]) -> None:
    """Every byte between the members' contents. Raises ValueError unless it is as FORMAT.md says."""
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        name = region[start - BLOCK : start - BLOCK + 100].rstrip(b"\0").decode("ascii")
        after = region[start + size : start + size + -size % BLOCK]
        if region[start - BLOCK : start] != tar_header(name, size) or any(after):
            raise ValueError(f"the header or the padding of member {number} of sample {key} is not as the format says")
