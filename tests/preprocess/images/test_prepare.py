"""Image checks: what is accepted, what is rejected and why, and that resizing is what the encoder itself would do."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps, JpegImagePlugin

import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision
from preprocess.conversation import REASONS
from preprocess.errors import RejectError
from preprocess.images.prepare import ImagePolicy, StoredImage, prepare_image
from shards.images.pixels import PAD_COLOURS, to_rgb
from tests.support.paths import EXAMPLES

PHOTOS = sorted(EXAMPLES.rglob("*.jpg"))

DECODE, HEADER = ImagePolicy(), ImagePolicy(check="header")
RESIZED = ImagePolicy(store="resized", size=64)
EXACT = ImagePolicy(store="resized", size=64, format="png")
ALL = (DECODE, HEADER, RESIZED)


def photo() -> Image.Image:
    with Image.open(EXAMPLES / "coco" / "train2017" / "000000000112.jpg") as image:
        return image.convert("RGB").resize((90, 60))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoded(stored: StoredImage) -> Image.Image:
    with Image.open(io.BytesIO(stored.data)) as image:
        image.load()
        assert image.size == (stored.width, stored.height)
        return image


def reason(data: bytes, policy: ImagePolicy = DECODE) -> str:
    with pytest.raises(RejectError) as caught:
        prepare_image(data, policy)
    assert caught.value.reason in REASONS
    assert caught.value.detail
    return caught.value.reason


def outcome(data: bytes, policy: ImagePolicy) -> str:
    try:
        prepare_image(data, policy)
    except RejectError as error:
        return error.reason
    return "stored"


def difference(one: Image.Image, other: Image.Image) -> float:
    assert (one.size, one.mode) == (other.size, other.mode)
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.name)
def test_the_example_photos_are_accepted_and_kept_byte_for_byte(path: Path) -> None:
    data = path.read_bytes()
    with Image.open(path) as image:
        width, height = image.size
    if min(width, height) < 2:
        assert reason(data) == "image_too_small"
        return
    for policy in (DECODE, HEADER):
        expected = StoredImage(data=data, extension="jpg", width=width, height=height, original_size=(width, height))
        assert prepare_image(data, policy) == expected
    small = prepare_image(data, RESIZED)
    assert (small.extension, small.width, small.height) == ("jpg", 64, 64)


KINDS: dict[str, tuple[Image.Image, str, dict[str, Any], str]] = {
    "jpeg": (photo(), "JPEG", {}, "jpg"),
    "progressive jpeg": (photo(), "JPEG", {"progressive": True}, "jpg"),
    "gray jpeg": (photo().convert("L"), "JPEG", {}, "jpg"),
    "CMYK jpeg": (photo().convert("CMYK"), "JPEG", {}, "jpg"),
    "png": (photo(), "PNG", {}, "png"),
    "gray png": (photo().convert("L"), "PNG", {}, "png"),
    "gray alpha png": (photo().convert("LA"), "PNG", {}, "png"),
    "alpha png": (photo().convert("RGBA"), "PNG", {}, "png"),
    "palette png": (photo().convert("P"), "PNG", {}, "png"),
    "palette png with alpha": (photo().convert("P"), "PNG", {"transparency": bytes(range(256))}, "png"),
    "1-bit png": (photo().convert("1"), "PNG", {}, "png"),
    "gif": (photo().convert("P"), "GIF", {}, "gif"),
    "transparent gif": (photo().convert("P"), "GIF", {"transparency": 3}, "gif"),
    "webp": (photo(), "WEBP", {}, "webp"),
    "lossless alpha webp": (photo().convert("RGBA"), "WEBP", {"lossless": True}, "webp"),
    "bmp": (photo(), "BMP", {}, "bmp"),
    "phone's jpeg": (photo(), "MPO", {"save_all": True, "append_images": [photo()]}, "jpg"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_supported_kind_of_image_is_kept_as_it_is_or_resized_from_rgb(kind: str) -> None:
    image, form, options, extension = KINDS[kind]
    data = encoded(image, form, **options)
    for policy in (DECODE, HEADER):
        stored = StoredImage(data=data, extension=extension, width=90, height=60, original_size=(90, 60))
        assert prepare_image(data, policy) == stored
    with Image.open(io.BytesIO(data)) as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = opened.convert("RGB")  # as Hugging Face does
    assert difference(decoded(prepare_image(data, EXACT)), slow_crop(expected, 64)) == 0
    assert difference(to_rgb(expected), expected) == 0


def slow_crop(image: Image.Image, size: int) -> Image.Image:
    """What transformers' get_resize_output_image_size and center_crop say, word for word."""
    short, long = sorted(image.size)
    new_short, new_long = size, int(size * long / short)
    shape = (new_short, new_long) if image.width <= image.height else (new_long, new_short)
    image = image.resize(shape, Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return Image.fromarray(pixels[top : top + size, left : left + size])


@pytest.mark.parametrize("shape", [(90, 60), (60, 91), (337, 336), (65, 64), (500, 41), (7, 200), (64, 64), (33, 100)])
def test_a_resized_image_is_what_the_clip_processor_makes(shape: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "CLIPImageProcessorPil"):
        pytest.skip("transformers before 5 names it otherwise")
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, do_rescale=False, do_normalize=False
    )
    image = photo().resize(shape)
    expected = Image.fromarray(processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0).astype("u1"))
    data = encoded(image, "PNG")
    assert difference(decoded(prepare_image(data, EXACT)), expected) == 0
    assert difference(decoded(prepare_image(data, EXACT)), slow_crop(image, 64)) == 0


def test_a_photo_stored_as_jpeg_is_close_to_the_pixels_the_encoder_would_see() -> None:
    policy = ImagePolicy(store="resized", size=224)
    for path in PHOTOS:
        with Image.open(path) as image:
            if min(image.size) < 2:
                continue
            expected = slow_crop(image.convert("RGB"), 224)
        assert difference(decoded(prepare_image(path.read_bytes(), policy)), expected) < 2


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_squash_scales_both_sides(interpolation: Literal["bicubic", "bilinear", "lanczos"]) -> None:
    policy = ImagePolicy(store="resized", size=50, fit="squash", interpolation=interpolation, format="png")
    stored = prepare_image(encoded(photo(), "PNG"), policy)
    assert difference(decoded(stored), photo().resize((50, 50), Image.Resampling[interpolation.upper()])) == 0


@pytest.mark.parametrize("shape", [(90, 60), (60, 90), (64, 64), (3000, 2), (2, 3000)])
def test_pad_shows_the_whole_image_between_borders_of_the_mean_colour(shape: tuple[int, int]) -> None:
    policy = ImagePolicy(store="resized", size=64, fit="pad", pad_colour="siglip", format="png")
    image = photo().resize(shape)
    result = decoded(prepare_image(encoded(image, "PNG"), policy))
    side = max(shape)
    square = Image.new("RGB", (side, side), PAD_COLOURS["siglip"])
    square.paste(image, ((side - shape[0]) // 2, (side - shape[1]) // 2))
    assert difference(result, square.resize((64, 64), Image.Resampling.BICUBIC)) == 0


def test_a_resized_image_carries_no_metadata_and_is_the_same_every_time() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    options = {"exif": exif, "icc_profile": b"profile" * 100, "comment": b"a secret", "dpi": (300, 300)}
    data = encoded(photo(), "JPEG", **options)
    for policy in (RESIZED, EXACT):
        stored = prepare_image(data, policy)
        assert stored == prepare_image(data, policy)
        assert b"secret" not in stored.data
        assert b"profile" not in stored.data
        assert "exif" not in decoded(stored).info
    assert b"secret" in prepare_image(data, DECODE).data


def test_quality_and_subsampling_reach_the_encoder() -> None:
    sizes = [
        len(prepare_image(encoded(photo(), "PNG"), ImagePolicy(store="resized", size=200, **options)).data)
        for options in ({"quality": 50, "subsampling": "4:2:0"}, {"quality": 50}, {})
    ]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_turns_the_image_as_pillow_does(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(), form, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    for policy in (DECODE, HEADER):
        stored = prepare_image(data, policy)
        assert (stored.data, stored.width, stored.height) == (data, *upright.size)
    assert difference(decoded(prepare_image(data, EXACT)), slow_crop(upright, 64)) == 0


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int = 8, colour: int = 2, pixels: bytes = b"") -> bytes:
    header = struct.pack(">LLBBBBB", width, height, depth, colour, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


def test_an_orientation_behind_the_pixels_of_a_png_counts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(), "PNG")
    late = data[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + data[-12:]
    for policy in (DECODE, HEADER):
        assert (prepare_image(late, policy).width, prepare_image(late, policy).height) == (60, 90)


def test_broken_metadata_does_not_break_an_image_and_gives_no_warning() -> None:
    for exif in (b"Exif\0\0" + b"\xff" * 40, b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b"Exif\0\0"):
        data = encoded(photo(), "JPEG", exif=exif)
        for policy in ALL:
            prepare_image(data, policy)


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
