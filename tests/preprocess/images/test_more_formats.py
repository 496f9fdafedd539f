"""Formats and depths that shards do not hold: read as Pillow reads them, stored as PNG, without loss; or refused."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from preprocess.conversation import NOTES
from preprocess.errors import RejectError
from preprocess.images.prepare import ImagePolicy, prepare_image
from shards.images import formats
from shards.images.decode import decode_pillow
from shards.images.formats import reads_avif
from shards.images.png_texts import MAX_CHUNK_BYTES, without_large_texts

ORIGINAL = ImagePolicy(size=32)
HEADER = ImagePolicy(size=32, check="header")
RESIZED = ImagePolicy(size=32, store="resized", format="png")
POLICIES = (ORIGINAL, HEADER, RESIZED)

PIXELS = np.random.Generator(np.random.PCG64(3)).integers(0, 256, (24, 40, 3), np.uint8)
PHOTO = Image.fromarray(PIXELS)
OTHER = Image.fromarray(255 - PIXELS)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def reason(data: bytes, policy: ImagePolicy) -> str:
    with pytest.raises(RejectError) as caught:
        prepare_image(data, policy)
    return caught.value.reason


def same_pixels(data: bytes, expected: Image.Image, **options: Any) -> None:
    """Under every policy, what the loader decodes is what Pillow makes of `expected`."""
    for check in ("decode", "header"):
        stored = prepare_image(data, ImagePolicy(size=32, check=check, **options))
        assert stored.extension == "png"
        with Image.open(io.BytesIO(stored.data)) as image:
            assert np.array_equal(np.asarray(image), np.asarray(expected))
        assert (stored.width, stored.height, stored.original_size) == (*expected.size, expected.size)
    resized = prepare_image(data, ImagePolicy(size=32, store="resized", format="png", **options))
    square = decode_pillow(encoded(expected, "PNG"), ORIGINAL.geometry)[0]
    assert np.array_equal(decode_pillow(resized.data, ORIGINAL.geometry)[0], square)
    assert resized.original_size == expected.size


TIFFS: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    "plain": (PHOTO, {}),
    "LZW": (PHOTO, {"compression": "tiff_lzw"}),
    "deflate": (PHOTO, {"compression": "tiff_adobe_deflate"}),
    "gray": (PHOTO.convert("L"), {}),
    "CMYK": (PHOTO.convert("CMYK"), {}),
    "alpha": (PHOTO.convert("RGBA"), {}),
    "palette": (PHOTO.convert("P"), {}),
    "fax": (PHOTO.convert("1"), {"compression": "group4"}),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_a_tiff_is_stored_as_png_with_pillows_pixels(kind: str) -> None:
    image, options = TIFFS[kind]
    same_pixels(encoded(image, "TIFF", **options), image.convert("RGB"))


@pytest.mark.skipif(not reads_avif(), reason="Pillow before 11.3 reads no AVIF")
def test_an_avif_is_stored_as_png_with_pillows_pixels() -> None:
    data = encoded(PHOTO, "AVIF", quality=80)
    with Image.open(io.BytesIO(data)) as image:
        same_pixels(data, image.convert("RGB"))
    heif_brand = data[:8] + b"mif1" + data[12:]
    assert prepare_image(heif_brand, ORIGINAL) == prepare_image(data, ORIGINAL)


def test_an_avif_is_refused_with_what_to_do_where_pillow_cannot_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "reads_avif", lambda: False)
    with pytest.raises(RejectError, match=r"Pillow 11\.3"):
        prepare_image(b"\0\0\0\x1cftypavif\0\0\0\0", ORIGINAL)


@pytest.mark.parametrize("form", ["TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_tiff_or_an_avif_is_applied_once(form: str, orientation: int) -> None:
    if form == "AVIF" and not reads_avif():
        pytest.skip("Pillow before 11.3 reads no AVIF")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PHOTO, form, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        same_pixels(data, ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize("form", ["TIFF", "AVIF"])
def test_a_tiff_or_an_avif_that_is_cut_off_or_too_large_is_refused(form: str) -> None:
    if form == "AVIF" and not reads_avif():
        pytest.skip("Pillow before 11.3 reads no AVIF")
    data = encoded(PHOTO, form)
    for policy in POLICIES:
        assert reason(data[: len(data) // 2], policy) == "image_unreadable"
    assert reason(data, ImagePolicy(max_pixels=900)) == "image_too_large"


@pytest.mark.parametrize("form", ["TIFF", "AVIF"])
def test_flipped_bits_of_a_tiff_or_an_avif_never_raise_anything_but_a_reject(form: str) -> None:
    if form == "AVIF" and not reads_avif():
        pytest.skip("Pillow before 11.3 reads no AVIF")
    generator = random.Random(0)
    whole = encoded(PHOTO, form)
    for _ in range(100):
        data = bytearray(whole)
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        with contextlib.suppress(RejectError):
            prepare_image(bytes(data), ORIGINAL)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_kept_where_the_blend_says_so(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(PHOTO, form, save_all=True, append_images=[OTHER, PHOTO], **options)
    for policy in POLICIES:
        assert reason(data, policy) == "image_animated"
    with Image.open(io.BytesIO(data)) as image:
        same_pixels(data, image.convert("RGB"), frames="first")
    assert prepare_image(data, ImagePolicy(frames="first")).notes == ("first_frame",)
    assert "first_frame" in NOTES
    still = prepare_image(encoded(PHOTO, "PNG"), ImagePolicy(frames="first"))
    assert (still.notes, still.data) == ((), encoded(PHOTO, "PNG"))


def deep_png(channels: int) -> tuple[bytes, np.ndarray[Any, Any]]:
    """16 bits a channel, which Pillow writes only for gray; and the high bytes, uint8 [H, W, channels]."""
    values = np.random.Generator(np.random.PCG64(5)).integers(0, 65536, (24, 40, channels), np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">LLBBBBB", 40, 24, 16, colour, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return data, (values >> 8).astype(np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_of_16_bits_keeps_its_high_bytes_where_the_blend_says_so(channels: int) -> None:
    data, high = deep_png(channels)
    for policy in POLICIES:
        assert reason(data, policy) == "image_format"
    colours = np.repeat(high[..., :1], 3, axis=2) if channels < 3 else high[..., :3]
    same_pixels(data, Image.fromarray(np.ascontiguousarray(colours)), sixteen_bit="scale")
    assert prepare_image(data, ImagePolicy(sixteen_bit="scale")).notes == ("scaled_to_8_bits",)


def test_a_gray_tiff_of_16_bits_keeps_its_high_bytes_and_one_of_floats_is_refused() -> None:
    values = np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 60
    expected = Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    same_pixels(encoded(Image.fromarray(values), "TIFF"), expected, sixteen_bit="scale")
    for kind in (np.float32, np.int32):
        data = encoded(Image.fromarray(values.astype(kind)), "TIFF")
        assert reason(data, ImagePolicy(sixteen_bit="scale")) == "image_format"


# Texts of a PNG


def with_chunks(*chunks: bytes, late: bool = False) -> bytes:
    data = encoded(PHOTO, "PNG")
    place = len(data) - 12 if late else 33  # before IEND, or behind IHDR
    return data[:place] + b"".join(chunks) + data[place:]


LARGE = b"a drawing program's workflow " * 60_000
TEXTS = {
    "zTXt": chunk(b"zTXt", b"Workflow\0\0" + zlib.compress(LARGE)),
    "iTXt": chunk(b"iTXt", b"Workflow\0\1\0en\0\0" + zlib.compress(LARGE)),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + zlib.compress(LARGE)),
    "tEXt": chunk(b"tEXt", b"Workflow\0" + LARGE),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", TEXTS)
def test_a_large_text_or_profile_does_not_make_a_png_unreadable(kind: str, late: bool) -> None:
    data = with_chunks(TEXTS[kind], late=late)
    stored = prepare_image(data, ORIGINAL)
    assert stored.data == data
    square = decode_pillow(encoded(PHOTO, "PNG"), ORIGINAL.geometry)[0]
    assert np.array_equal(decode_pillow(stored.data, ORIGINAL.geometry)[0], square)


def test_small_texts_stay_and_the_file_is_not_copied() -> None:
    small = chunk(b"zTXt", b"Title\0\0" + zlib.compress(b"a cup"))
    data = with_chunks(small, chunk(b"iTXt", b"T\0\0\0\0\0caf\xc3\xa9"))
    assert without_large_texts(data) is data
    assert without_large_texts(with_chunks(small, TEXTS["zTXt"])) == with_chunks(small)


def test_many_texts_are_unpacked_up_to_a_limit() -> None:
    bomb = chunk(b"zTXt", b"Title\0\0" + zlib.compress(bytes(MAX_CHUNK_BYTES)))
    assert len(without_large_texts(with_chunks(*[bomb] * 200))) < len(with_chunks(*[bomb] * 40))
    prepare_image(with_chunks(*[bomb] * 200), ORIGINAL)


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n", with_chunks()[:40], with_chunks(b"\xff\xff\xff\xffzTXt")])
def test_broken_chunks_are_left_to_pillow(data: bytes) -> None:
    without_large_texts(data)
    assert reason(data, ORIGINAL) == "image_unreadable"
