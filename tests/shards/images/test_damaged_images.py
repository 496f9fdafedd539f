"""Decoders give Pillow's pixels or its refusal for damaged images, and never decode one that is too large."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import shards.images.decode
from shards.errors import ImageError
from shards.images.decode import DECODERS, Pixels, decode_pillow
from tests.support.decoded_images import CLOSE, CROP, LAND, READY, decode, difference, photo, turned
from tests.support.image_files import chunk, encoded

DAMAGED = {
    **{f"ready {kind}": READY[kind] for kind in ("4:4:4", "4:2:0", "progressive", "gray")},
    "turned": turned(photo(41, 30), 6),
    "CMYK": encoded(photo(41, 30).convert("CMYK"), "JPEG"),
    "jpeg": encoded(photo(41, 30), "JPEG", comment=b"a comment", restart_marker_blocks=2),
    "png": encoded(photo(41, 30), "PNG"),
    "palette": encoded(photo(41, 30).convert("P"), "PNG", transparency=3),
    "webp": encoded(photo(41, 30), "WEBP"),
    "gif": encoded(photo(41, 30).convert("P"), "GIF"),
    "bmp": encoded(photo(41, 30), "BMP"),
}


def outcome(name: str, data: bytes) -> Pixels | str:
    try:
        return decode(name, data, CROP)
    except ImageError as error:
        return f"{error.reason}: {error}"


def same_as_pillow(data: bytes) -> None:
    expected: Pixels | str
    try:
        expected = decode_pillow(data, CROP)[0]
    except ImageError as error:
        expected = f"{error.reason}: {error}"
    for name, most in (("exact", 0), ("fast", CLOSE)):
        got = outcome(name, data)
        if isinstance(expected, str) or isinstance(got, str):
            assert isinstance(expected, str), f"{name} refuses what Pillow reads: {got!r}"
            assert isinstance(got, str), f"{name} reads what Pillow refuses: {expected!r}"
            assert (
                got.partition(" object at")[0] == expected.partition(" object at")[0]
            )  # texts with an address in them
        else:
            assert difference(got, expected) <= most


@given(
    kind=st.sampled_from(sorted(DAMAGED)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7), st.booleans()), max_size=4),
    kept=st.one_of(st.just(1.0), st.floats(0, 1)),
)
@settings(max_examples=500)
def test_damaged_images_give_pillows_pixels_or_pillows_refusal(
    kind: str, flips: list[tuple[float, int, bool]], kept: float
) -> None:
    data = bytearray(DAMAGED[kind])
    for place, bit, in_header in flips:
        data[int(place * (min(len(data), 640 if in_header else len(data))))] ^= 1 << bit
    same_as_pillow(bytes(data[: round(kept * len(data))]))


@pytest.mark.parametrize("kind", ["4:4:4", "progressive"])
@pytest.mark.parametrize("marker", range(0xC0, 0xD0))
def test_a_jpeg_of_another_coding_gives_pillows_pixels_or_pillows_refusal(marker: int, kind: str) -> None:
    data = bytearray(READY[kind])
    frame = data.index(b"\xff\xc2" if kind == "progressive" else b"\xff\xc0")
    data[frame + 1] = marker
    same_as_pillow(bytes(data))


def jpeg_of(width: int, height: int, *, twice: bool = False) -> bytes:
    """A small JPEG that says it is of another size; twice: that says so first, and then its true size."""
    data = bytearray(READY["4:4:4"])
    start = data.index(b"\xff\xc0")
    frame = bytearray(data[start : start + 2 + data[start + 3]])
    frame[5:9] = struct.pack(">HH", height, width)
    return bytes(data[:start] + frame + data[start if twice else start + len(frame) :])


@pytest.mark.parametrize("name", DECODERS)
def test_an_image_of_200_megapixels_is_never_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bmp = bytearray(encoded(photo(40, 30), "BMP"))
    bmp[18:26] = struct.pack("<LL", 20_000, 10_000)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">LLBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    monkeypatch.setattr("PIL.Image.core.new", lambda *_: pytest.fail("pixels were asked for"))
    monkeypatch.setattr(shards.images.decode, "_decoded_jpeg", lambda *_: pytest.fail("pixels were asked for"))
    for data in (png, bytes(bmp), jpeg_of(20_000, 10_000)):
        assert str(outcome(name, data)).startswith("too_large: 20000x10000 is more than 4000000 pixels")


def test_a_jpeg_with_two_sizes_is_refused_whichever_is_true() -> None:
    for size in ((20_000, 10_000), (65, 64), (32, 32)):
        same_as_pillow(jpeg_of(*size, twice=True))
        assert str(outcome("exact", jpeg_of(*size, twice=True))).startswith("unreadable")


def test_a_jpeg_of_another_size_than_it_says_never_leaves_a_batch_half_filled() -> None:
    """The rows that such a file does not have are gray in libjpeg and an error in Pillow."""
    for height in (56, 63, 65, 72, 640):
        same_as_pillow(jpeg_of(64, height))
        same_as_pillow(jpeg_of(height, 64))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "unreadable: the file is empty"),
        (b"<html>404</html>", "unreadable: no image"),
        (b"%PDF-1.4", "format: PDF is not supported"),
        (encoded(Image.fromarray(np.zeros((20, 20), np.uint16)), "PNG"), "format: more than 8 bits"),
        (encoded(LAND, "WEBP", save_all=True, append_images=[LAND.rotate(90)]), "animated: the image has more"),
        (encoded(Image.new("L", (2, 900)), "PNG"), "too_large: 2x900 is so long that it would be 64x28800"),
    ],
)
def test_what_is_not_an_image_for_training_is_refused_with_its_reason(data: bytes, expected: str, name: str) -> None:
    geometry = replace(CROP, max_pixels=1_000_000)
    with pytest.raises(ImageError) as caught:
        decode(name, data, geometry)
    assert f"{caught.value.reason}: {caught.value}".startswith(expected)
    assert isinstance(caught.value, ValueError)
