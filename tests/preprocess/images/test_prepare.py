"""Image checks: what is accepted and kept, and that resizing is what the encoder itself would do."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image, ImageOps

import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision
from preprocess.images.prepare import ImagePolicy, StoredImage, prepare_image
from shards.images.pixels import PAD_COLOURS, to_rgb
from tests.support.image_files import chunk, encoded
from tests.support.paths import EXAMPLES
from tests.support.prepared_images import ALL, DECODE, HEADER, KINDS, RESIZED, photo, reason

PHOTOS = sorted(EXAMPLES.rglob("*.jpg"))
EXACT = ImagePolicy(store="resized", size=64, format="png")


def decoded(stored: StoredImage) -> Image.Image:
    with Image.open(io.BytesIO(stored.data)) as image:
        image.load()
        assert image.size == (stored.width, stored.height)
        return image


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
