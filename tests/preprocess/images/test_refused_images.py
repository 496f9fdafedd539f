"""Image checks: what is refused and why, for images that are too large, damaged or of another format."""

from __future__ import annotations

import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, JpegImagePlugin

from preprocess.conversation import REASONS
from preprocess.errors import RejectError
from preprocess.images.prepare import ImagePolicy, prepare_image
from tests.support.image_files import chunk, encoded
from tests.support.prepared_images import ALL, DECODE, KINDS, RESIZED, photo, reason


def outcome(data: bytes, policy: ImagePolicy) -> str:
    try:
        prepare_image(data, policy)
    except RejectError as error:
        return error.reason
    return "stored"


def png(width: int, height: int, depth: int = 8, colour: int = 2, pixels: bytes = b"") -> bytes:
    header = struct.pack(">LLBBBBB", width, height, depth, colour, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
@pytest.mark.parametrize("policy", ALL)
def test_images_with_several_frames_are_animated(form: str, policy: ImagePolicy) -> None:
    data = encoded(photo(), form, save_all=True, append_images=[photo().rotate(90)], duration=100)
    assert reason(data, policy) == "image_animated"


@pytest.mark.parametrize("policy", ALL)
def test_more_than_8_bits_a_channel_is_a_format_error(policy: ImagePolicy) -> None:
    gray = np.zeros((20, 20), dtype=np.uint16)
    assert reason(encoded(Image.fromarray(gray), "PNG"), policy) == "image_format"
    for colour, channels in ((2, 3), (4, 2), (6, 4)):
        row = b"\0" + bytes(20 * channels * 2)
        assert reason(png(20, 20, depth=16, colour=colour, pixels=row * 20), policy) == "image_format"
    jpeg = bytearray(encoded(photo(), "JPEG"))
    jpeg[jpeg.index(b"\xff\xc0") + 4] = 12
    assert reason(bytes(jpeg), policy) == "image_format"


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_a_side_below_the_limit_is_too_small(form: str, policy: ImagePolicy) -> None:
    assert reason(encoded(Image.new("RGB", (1, 1)), form), policy) == "image_too_small"
    assert reason(encoded(Image.new("RGB", (50, 1)), form), policy) == "image_too_small"
    prepare_image(encoded(Image.new("RGB", (2, 2)), form), policy)


@pytest.mark.parametrize("policy", ALL)
def test_an_image_of_200_megapixels_is_never_decoded(policy: ImagePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = bytearray(encoded(photo(), "JPEG"))
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg[size : size + 4] = struct.pack(">HH", 10_000, 20_000)
    webp = bytearray(encoded(photo(), "WEBP"))
    webp[26:30] = struct.pack("<HH", 16_000, 12_500)
    bmp = bytearray(encoded(photo(), "BMP"))
    bmp[18:26] = struct.pack("<LL", 20_000, 10_000)
    monkeypatch.setattr("PIL.Image.core.new", lambda *_: pytest.fail("pixels were asked for"))
    for data in (png(20_000, 10_000), png(2**31 - 1, 2**31 - 1), bytes(jpeg), bytes(webp), bytes(bmp)):
        assert reason(data, policy) == "image_too_large"


def test_the_limit_is_ours_and_not_pillows() -> None:
    data = encoded(Image.new("1", (12_000, 8_000)), "PNG")  # Pillow warns from 89 megapixels on
    assert prepare_image(data, DECODE).width == 12_000
    assert reason(data, ImagePolicy(max_pixels=95_999_999)) == "image_too_large"
    assert prepare_image(data, ImagePolicy(max_pixels=96_000_000)).height == 8_000
    large = png(20_000, 10_000)
    assert prepare_image(large, ImagePolicy(check="header", max_pixels=200_000_000)).width == 20_000


def test_a_strip_too_long_to_be_resized_before_its_crop_is_too_large() -> None:
    data = encoded(Image.new("1", (50_000, 2)), "PNG")
    assert reason(data, ImagePolicy(store="resized")) == "image_too_large"
    assert prepare_image(data, ImagePolicy(store="resized", fit="pad")).width == 336
    assert prepare_image(data, DECODE).width == 50_000


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "image_unreadable"),
        (b"\xff\xd8\xff", "image_unreadable"),
        (b"<html><body>404 Not Found</body></html>", "image_unreadable"),
        (b"version https://git-lfs.github.com/spec/v1\n", "image_unreadable"),
        (bytes(1000), "image_unreadable"),
        (b"BM of text", "image_unreadable"),
        (b"RIFF\0\0\0\0WAVEfmt ", "image_unreadable"),
        (b"II+\0\x08\0\0\0", "image_format"),
        (encoded(photo(), "ICO"), "image_format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image_format"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<svg/>", "image_format"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "image_format"),
        (b"%PDF-1.4", "image_format"),
    ],
)
def test_what_is_not_a_supported_image_is_rejected_by_its_bytes(
    data: bytes, expected: str, policy: ImagePolicy
) -> None:
    assert reason(data, policy) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_cut_off_anywhere_is_unreadable(kind: str) -> None:
    image, form, options, _ = KINDS[kind]
    image = image.resize((30, 20))
    if form == "MPO":
        options = {"save_all": True, "append_images": [image]}
    data = encoded(image, form, **options)
    # What may be missing: GIF's end mark, its checksum in PNG, BMP's filling, all that follows an MPO's first image.
    spare = {"GIF": 2, "PNG": 4, "BMP": 2, "MPO": len(data) // 2}.get(form, 0)
    for length in range(len(data) - spare):
        assert reason(data[:length]) == "image_unreadable"
        assert reason(data[:length], RESIZED) == "image_unreadable"


def test_flipped_bits_never_raise_anything_but_an_image_error() -> None:
    generator = random.Random(0)
    for image, form, options, _ in KINDS.values():
        whole = encoded(image.resize((30, 20)), form, **options)
        for _ in range(150):
            data = bytearray(whole)
            for _ in range(generator.choice((1, 1, 5))):
                place = generator.randrange(min(len(data), generator.choice((60, 10**9))))
                data[place] ^= 1 << generator.randrange(8)
            for policy in ALL:
                assert outcome(bytes(data), policy) in {"stored", *REASONS}


@given(
    start=st.sampled_from([b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF89a", b"BM", b"II*\0", b""]),
    rest=st.binary(max_size=200),
)
@settings(max_examples=300, deadline=None)
def test_noise_behind_a_magic_number_is_an_image_error(start: bytes, rest: bytes) -> None:
    for policy in ALL:
        assert outcome(start + rest, policy) in {"stored", *REASONS}


@pytest.mark.parametrize("error", [MemoryError(), ImageFile._get_oserror(-9, encoder=False)])
@pytest.mark.parametrize("policy", [DECODE, RESIZED])
def test_memory_that_runs_out_says_nothing_about_an_image(
    error: Exception, policy: ImagePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second error is the one that Pillow makes of a decoder's own number for it."""
    data = encoded(photo(), "JPEG")

    def exhausted(*_: object) -> None:
        raise error

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", exhausted)
    with pytest.raises(MemoryError):
        prepare_image(data, policy)


def test_a_git_lfs_pointer_in_place_of_an_image_is_named() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    with pytest.raises(RejectError, match=r"Git LFS pointer.*git lfs pull") as caught:
        prepare_image(pointer, ImagePolicy())
    assert caught.value.reason == "image_unreadable"
