"""Decoders: what training sees is what the encoder's own preprocessing makes of the original image."""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import shards.images.decode
import shards.images.pixels
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision
from preprocess.images.prepare import ImagePolicy, prepare_image
from shards.errors import ImageError
from shards.images.decode import DECODERS, Pixels, decode_pillow
from shards.images.geometry import Geometry
from shards.images.pixels import PAD_COLOURS
from tests.support.paths import ROOT

PHOTOS = sorted((ROOT / "examples" / "data").rglob("*.jpg"))
CROP = Geometry(size=64, fit="crop", pad_colour="clip", interpolation="bicubic", max_pixels=4_000_000)
CLOSE = 1.5  # of 255, on average: how far the fast decoder may be from the exact one
MOST = 3  # of 255, for any one pixel, where both resize the same source


def photo(width: int, height: int) -> Image.Image:
    with Image.open(PHOTOS[-1]) as image:
        return image.convert("RGB").resize((width, height))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def turned(image: Image.Image, orientation: int, form: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, form, exif=exif)


LAND = photo(150, 101)
IMAGES: dict[str, bytes] = {
    "landscape": encoded(LAND, "JPEG"),
    "portrait": encoded(photo(101, 150), "JPEG", quality=95, subsampling="4:4:4"),
    "smaller": encoded(photo(40, 31), "JPEG"),
    "progressive": encoded(LAND, "JPEG", progressive=True),
    "RGB without YCbCr": encoded(LAND, "JPEG", keep_rgb=True),
    "gray": encoded(LAND.convert("L"), "JPEG"),
    "CMYK": encoded(LAND.convert("CMYK"), "JPEG"),
    "phone": encoded(LAND, "MPO", save_all=True, append_images=[photo(20, 30)]),
    "png": encoded(LAND, "PNG"),
    "palette": encoded(LAND.convert("P"), "PNG", transparency=bytes(range(256))),
    "alpha": encoded(Image.merge("RGBA", (*LAND.split(), LAND.convert("L"))), "PNG"),
    "webp": encoded(LAND, "WEBP"),
    "alpha webp": encoded(LAND.convert("RGBA"), "WEBP", lossless=True),
    "gif": encoded(LAND.convert("P"), "GIF", transparency=3),
    "bmp": encoded(LAND, "BMP"),
    **{f"orientation {number}": turned(LAND, number) for number in range(1, 9)},
    **{f"png orientation {number}": turned(LAND, number, "PNG") for number in (3, 6)},
}

READY: dict[str, bytes] = {
    "4:4:4": encoded(photo(64, 64), "JPEG", quality=95, subsampling="4:4:4"),
    "4:2:0": encoded(photo(64, 64), "JPEG"),
    "progressive": encoded(photo(64, 64), "JPEG", progressive=True),
    "gray": encoded(photo(64, 64).convert("L"), "JPEG"),
    "png": encoded(photo(64, 64), "PNG"),
    "mirrored": turned(photo(64, 64), 2),
}


def decode(name: str, data: bytes | memoryview, geometry: Geometry) -> Pixels:
    out = np.full((geometry.size, geometry.size, 3), 77, np.uint8)
    DECODERS[name](data, geometry, out)
    return out


def difference(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


def seen(data: bytes) -> Image.Image:
    """What the image's author saw: Hugging Face's processors do not turn images, so this comes before them."""
    with Image.open(io.BytesIO(data)) as image, warnings.catch_warnings(action="ignore"):  # of alpha in a palette
        return ImageOps.exif_transpose(image).convert("RGB")


def twin(data: bytes, geometry: Geometry) -> Pixels:
    """The geometry once more, with whole numbers and array slices."""
    image, size = seen(data), geometry.size
    resample = Image.Resampling[geometry.interpolation.upper()]
    if geometry.fit == "squash":
        return np.asarray(image.resize((size, size), resample))
    if geometry.fit == "pad":
        wide, high = image.size
        side = max(image.size)
        square = np.full((side, side, 3), PAD_COLOURS[geometry.pad_colour], np.uint8)
        left, top = (side - wide) // 2, (side - high) // 2
        square[top : top + high, left : left + wide] = np.asarray(image)
        return np.asarray(Image.fromarray(square).resize((size, size), resample))
    wide, high = (max(1, size * length // min(image.size)) for length in image.size)
    left, top = (wide - size) // 2, (high - size) // 2
    return np.asarray(image.resize((wide, high), resample))[top : top + size, left : left + size]


def processed(data: bytes, size: int, fit: str = "crop") -> Pixels:
    """Hugging Face's preprocessing of the original, without the normalisation."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "CLIPImageProcessorPil"):
        pytest.skip("transformers before 5 names it otherwise")
    same = {"do_rescale": False, "do_normalize": False}
    square = {"height": size, "width": size}
    if fit == "squash":
        processor = transformers.SiglipImageProcessorPil(size=square, **same)
    elif fit == "pad":
        processor = transformers.LlavaImageProcessorPil(size=square, crop_size=square, do_pad=True, **same)
    else:
        processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square, **same)
    pixels: Pixels = np.asarray(processor(seen(data), return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    return pixels


@pytest.fixture
def fresh() -> Iterator[None]:
    """Installed libraries are looked for again, in the test and after it."""
    for cached in (shards.images.decode._simplejpeg, shards.images.decode._has_torch):
        cached.cache_clear()
    yield
    for cached in (shards.images.decode._simplejpeg, shards.images.decode._has_torch):
        cached.cache_clear()


@pytest.mark.parametrize("kind", IMAGES)
def test_original_images_give_the_pixels_of_the_clip_processor(kind: str) -> None:
    expected = processed(IMAGES[kind], 64)
    assert difference(decode("exact", IMAGES[kind], CROP), expected) == 0
    assert difference(decode("fast", IMAGES[kind], CROP), expected) < CLOSE


@pytest.mark.parametrize("kind", IMAGES)
def test_squashed_images_give_the_pixels_of_the_siglip_processor(kind: str) -> None:
    squash = replace(CROP, fit="squash")
    expected = processed(IMAGES[kind], 64, "squash")
    assert difference(decode("exact", IMAGES[kind], squash), expected) == 0
    assert difference(decode("fast", IMAGES[kind], squash), expected) < CLOSE


def test_padded_images_give_the_pixels_of_the_llava_processor() -> None:
    """Those of LLaVA-1.5: it pads to a square with the mean colour, and then resizes."""
    images = {path.name: path.read_bytes() for path in PHOTOS} | IMAGES
    assert len(PHOTOS) >= 8
    for size in (64, 336):
        pad = replace(CROP, fit="pad", size=size)
        for name, data in images.items():
            expected = processed(data, size, "pad")
            assert difference(decode("exact", data, pad), expected) == 0, name
            assert difference(decode("fast", data, pad), expected) < CLOSE, name


@pytest.mark.parametrize("size", [(3000, 7), (7, 3000), (2999, 1500)])
def test_a_long_strip_is_padded_without_its_square_in_memory(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards.images.pixels, "_PIXELS_AT_ONCE", 100_000)
    pad = replace(CROP, fit="pad", max_pixels=5_000_000)
    data = encoded(photo(*size), "PNG")
    for name in DECODERS:
        assert difference(decode(name, data, pad), twin(data, pad)) == 0


@pytest.mark.parametrize("size", [(192, 96), (96, 160), (64, 64)])
def test_original_images_give_the_pixels_of_open_clip(size: tuple[int, int]) -> None:
    """Sides whose border is even on both sides: where it is odd, open_clip and Hugging Face cut one pixel apart."""
    open_clip = pytest.importorskip("open_clip")
    transform = open_clip.image_transform(64, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    data = encoded(photo(*size), "JPEG")
    expected = np.round(transform(seen(data)).numpy().transpose(1, 2, 0) * 255)
    assert difference(decode("exact", data, CROP), expected) == 0
    assert difference(decode("fast", data, CROP), expected) < CLOSE


@pytest.mark.parametrize("name", DECODERS)
def test_resized_photos_are_close_to_what_the_clip_processor_makes_of_the_originals(name: str) -> None:
    policy = ImagePolicy(store="resized")
    for path in PHOTOS:
        data = path.read_bytes()
        pixels = decode(name, prepare_image(data, policy).data, policy.geometry)
        assert difference(pixels, processed(data, policy.size)) < 2, path


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", IMAGES)
def test_images_resized_to_png_are_what_the_clip_processor_makes_of_the_originals(kind: str, name: str) -> None:
    stored = prepare_image(IMAGES[kind], ImagePolicy(store="resized", size=64, format="png"))
    assert difference(decode(name, stored.data, CROP), processed(IMAGES[kind], 64)) == 0


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("kind", IMAGES)
def test_every_kind_and_fit_is_exactly_pillows_and_closely_the_fast_decoders(kind: str, fit: Any) -> None:
    geometry = replace(CROP, fit=fit)
    expected = twin(IMAGES[kind], geometry)
    assert difference(decode_pillow(IMAGES[kind], geometry), expected) == 0
    assert difference(decode("exact", IMAGES[kind], geometry), expected) == 0
    assert difference(decode("fast", IMAGES[kind], geometry), expected) < CLOSE


def drawn(content: str, width: int, height: int, seed: int) -> Image.Image:
    if content == "photo":
        return photo(width, height)
    if content == "noise":
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
    if content == "specks":
        return Image.fromarray(np.random.default_rng(seed).integers(0, 2, (height, width), np.uint8) * 255)
    checks = np.add.outer(np.arange(height) // (1 + seed % 4), np.arange(width) // (1 + seed % 3)) % 2
    return Image.fromarray((checks * 255).astype(np.uint8)).convert("RGB")


@given(
    content=st.sampled_from(["photo", "noise", "specks", "checks"]),
    width=st.integers(2, 900),
    height=st.integers(2, 900),
    seed=st.integers(0, 99),
    file=st.sampled_from([("JPEG", {}), ("JPEG", {"quality": 100, "subsampling": "4:4:4"}), ("PNG", {})]),
    size=st.integers(8, 120),
    fit=st.sampled_from(["crop", "squash", "pad"]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "lanczos"]),
    pad_colour=st.sampled_from(sorted(PAD_COLOURS)),
)
@settings(max_examples=80)
def test_any_size_and_geometry_is_exactly_pillows_and_closely_the_fast_decoders(
    content: str,
    width: int,
    height: int,
    seed: int,
    file: tuple[str, dict[str, Any]],
    size: int,
    fit: Any,
    interpolation: Any,
    pad_colour: Any,
) -> None:
    geometry = Geometry(size=size, fit=fit, interpolation=interpolation, pad_colour=pad_colour, max_pixels=10_000_000)
    data = encoded(drawn(content, width, height, seed), file[0], **file[1])
    expected = twin(data, geometry)
    assert difference(decode("exact", data, geometry), expected) == 0
    quick = decode("fast", data, geometry)
    assert difference(quick, expected) < CLOSE
    assert np.abs(quick.astype(int) - expected).max() <= (0 if interpolation == "lanczos" else MOST)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("size", [(2, 9), (96, 271), (61, 268), (43, 93), (130, 210), (210, 130), (90, 90), (9, 2)])
def test_black_and_white_specks_are_resized_in_pillows_order_of_passes(size: tuple[int, int], fit: Any) -> None:
    """Each pass cuts off what overshoots, which is nearly everything here: the wrong order is 4 of 255 away."""
    data = encoded(drawn("specks", *size, seed=0), "PNG")
    for side in (8, 50, 90):
        geometry = replace(CROP, size=side, fit=fit)
        got, expected = decode("fast", data, geometry), decode_pillow(data, geometry)
        assert np.abs(got.astype(int) - expected).max() <= MOST


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", READY)
def test_a_stored_image_of_the_right_size_is_not_resized_again(kind: str, name: str) -> None:
    for fit in ("crop", "squash", "pad"):
        geometry = replace(CROP, fit=fit)
        assert difference(decode(name, READY[kind], geometry), np.asarray(seen(READY[kind]))) == 0


@pytest.mark.parametrize("name", DECODERS)
def test_pixels_go_into_their_place_in_a_batch_and_nowhere_else(name: str) -> None:
    batch = np.full((3, 64, 64, 3), 9, np.uint8)
    for data in (IMAGES["landscape"], READY["4:4:4"]):
        DECODERS[name](memoryview(data), CROP, batch[1])
        assert difference(batch[1], decode_pillow(data, CROP)) < CLOSE
        assert (batch[[0, 2]] == 9).all()


@pytest.mark.parametrize("name", DECODERS)
def test_simplejpeg_decodes_stored_jpegs_of_the_right_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    decode(name, READY["4:4:4"], CROP)
    expected = decode_pillow(READY["4:4:4"], CROP)
    monkeypatch.setattr(shards.images.decode, "open_image", lambda _: pytest.fail("Pillow was asked"))
    assert difference(decode(name, READY["4:4:4"], CROP), expected) == 0
    with pytest.raises(pytest.fail.Exception, match="Pillow was asked"):
        decode(name, READY["mirrored"], CROP)


def test_without_simplejpeg_everything_is_decoded_by_pillow(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert shards.images.decode._simplejpeg() is None
    for data in (*IMAGES.values(), *READY.values()):
        assert difference(decode("exact", data, CROP), twin(data, CROP)) == 0
        assert difference(decode("fast", data, CROP), twin(data, CROP)) < CLOSE


def test_a_simplejpeg_with_other_pixels_than_pillows_is_not_used(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    assert shards.images.decode._simplejpeg() is not None
    shards.images.decode._simplejpeg.cache_clear()
    right = simplejpeg.decode_jpeg

    def wrong(data: bytes, colours: str) -> Pixels:
        pixels: Pixels = right(data, colours)
        pixels[-1, -1, 2] ^= 1
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", wrong)
    assert shards.images.decode._simplejpeg() is None
    assert difference(decode("exact", READY["4:2:0"], CROP), twin(READY["4:2:0"], CROP)) == 0


def test_without_torch_the_fast_decoder_is_the_exact_one(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for data in IMAGES.values():
        assert difference(decode("fast", data, CROP), twin(data, CROP)) == 0


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
        expected = decode_pillow(data, CROP)
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


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


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
