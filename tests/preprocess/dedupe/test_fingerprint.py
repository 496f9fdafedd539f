"""Fingerprints of images: equal for copies, close for what looks the same, and there for any bytes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from preprocess.dedupe.fingerprint import FINGERPRINT, bytes_fingerprint, look_fingerprint, tail_fingerprint
from preprocess.dedupe.near_search import popcount
from preprocess.dedupe.perceptual_hash import perceptual_hash
from tests.support.small_blends import SAMPLES, jpeg

PHOTOS = [path for path in sorted(SAMPLES.rglob("*.jpg")) if path.stat().st_size > 2000][:12]


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def distance(left: Image.Image, right: Image.Image) -> int:
    pairs = zip(*(perceptual_hash(image.convert("L")).words for image in (left, right)), strict=True)
    return sum((one ^ other).bit_count() for one, other in pairs)


def photo(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes())).convert("RGB")


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.name)
def test_a_photo_that_was_resized_and_encoded_again_has_a_close_hash(path: Path) -> None:
    image = photo(path)
    half = image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BICUBIC)
    assert distance(image, Image.open(io.BytesIO(encoded(half, "JPEG", quality=60)))) <= 31


def test_different_photos_have_hashes_far_apart() -> None:
    images = [photo(path) for path in PHOTOS]
    distances = [distance(one, other) for index, one in enumerate(images) for other in images[:index] if one != other]
    assert sorted(distances)[len(distances) // 20] > 60


def drawn(width: int, height: int) -> Image.Image:
    """Gray curves; all whole numbers, so that every machine draws the same pixels."""
    x, y = np.arange(width) * 1000 // width, np.arange(height)[:, None] * 1000 // height
    return Image.fromarray((((x * x + 3 * x * y) // 4000 + y * y // 1500 + x * y // 977 % 97) % 256).astype(np.uint8))


@pytest.mark.parametrize("size", [(640, 480), (300, 280), (256, 1023)])
def test_a_hash_is_that_of_the_pdqhash_package(size: tuple[int, int]) -> None:
    assert "".join(f"{word:016x}" for word in perceptual_hash(drawn(*size)).words) == PDQHASH[size]


PDQHASH = {
    (640, 480): "188a717bf2d7c52a0e513e9efd6a414a035afff270070e86e17e7eec870c9980",
    (300, 280): "1c8a317af2d7c52a0e513e9efd6ac14a035afff278070e86e17e5eeca70c1980",
    (256, 1023): "188a717be297c52a0ed53c9efd6a414a0b5afff270070e86e17edeec270c9980",
}
"""Of pdqhash 0.2.8: pdqhash.compute(np.dstack([np.asarray(drawn(width, height))] * 3))"""


@pytest.mark.parametrize("size", [(2400, 1800), (90, 68), (60, 1800)])
def test_an_image_that_is_averaged_or_enlarged_first_has_the_hash_of_one_that_is_not(size: tuple[int, int]) -> None:
    assert distance(drawn(600, 450).resize(size, Image.Resampling.BOX), drawn(600, 450)) <= 16


def test_a_jpeg_has_the_hash_of_its_colours_up_to_a_few_bits() -> None:
    for path in PHOTOS:
        own, colours = (look_fingerprint(data, 10**8)["hash"] for data in (path.read_bytes(), encoded(photo(path))))
        assert popcount(own ^ colours).sum() <= 4


def test_half_of_the_bits_are_set() -> None:
    assert sum(word.bit_count() for word in perceptual_hash(photo(PHOTOS[0]).convert("L")).words) == 128


@pytest.mark.parametrize("colour", ["white", "black", "gray"])
def test_an_image_of_one_colour_is_flat(colour: str) -> None:
    assert perceptual_hash(Image.new("L", (300, 200), colour)).flat
    assert not perceptual_hash(photo(PHOTOS[0]).convert("L")).flat


def test_images_of_one_brightness_and_two_colours_are_other_images_in_any_format() -> None:
    red, gray = Image.new("RGB", (64, 64), (200, 0, 0)), Image.new("RGB", (64, 64), (60, 60, 60))
    assert red.convert("L").tobytes() == gray.convert("L").tobytes()
    for kind in ("PNG", "JPEG"):
        one, other = (look_fingerprint(encoded(image, kind), 10**8) for image in (red, gray))
        assert one["flat"]
        assert (one["pixels"] != other["pixels"]).any()


@pytest.mark.parametrize("size", [(4, 300), (300, 4)])
def test_a_strip_that_pdq_does_not_hash_counts_as_flat(size: tuple[int, int]) -> None:
    assert perceptual_hash(drawn(*size)).flat


@pytest.mark.parametrize("size", [(1, 1), (2, 500), (3000, 3), (63, 64), (129, 257)])
def test_an_image_of_any_size_has_a_hash(size: tuple[int, int]) -> None:
    assert len(perceptual_hash(Image.linear_gradient("L").resize(size)).words) == 4


def test_a_file_that_was_saved_again_without_loss_has_the_same_pixels_and_other_bytes() -> None:
    image = photo(PHOTOS[0])
    left, right = (look_fingerprint(encoded(image, compress_level=level), 10**8) for level in (1, 9))
    assert (left["digest"] != right["digest"]).any()
    assert (left["pixels"] == right["pixels"]).all()
    assert (left["hash"] == right["hash"]).all()


def test_the_orientation_is_applied_before_pixels_are_compared() -> None:
    image = photo(PHOTOS[0])
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = look_fingerprint(encoded(image.rotate(180), exif=exif), 10**8)
    assert turned["orientation"] == 3
    assert (turned["pixels"] == look_fingerprint(encoded(image), 10**8)["pixels"]).all()


def test_the_same_pixels_in_another_shape_are_another_image() -> None:
    one, other = (look_fingerprint(encoded(Image.new("RGB", size)), 10**8) for size in ((4, 6), (6, 4)))
    assert (one["pixels"] != other["pixels"]).any()


def test_a_mirrored_photo_is_another_image() -> None:
    assert distance(photo(PHOTOS[0]), ImageOps.mirror(photo(PHOTOS[0]))) > 31


@pytest.mark.parametrize("data", [b"", b"no image", jpeg(1)[:300], b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_bytes_that_are_no_image_have_a_digest_and_no_look(data: bytes) -> None:
    fingerprint = look_fingerprint(data, 10**8)
    assert fingerprint["present"]
    assert not fingerprint["orientation"]
    assert (fingerprint["digest"] == bytes_fingerprint(data)["digest"]).all()


def test_an_image_with_too_many_pixels_is_not_decoded() -> None:
    assert not look_fingerprint(jpeg(1, size=(100, 100)), 9_999)["orientation"]
    assert look_fingerprint(jpeg(1, size=(100, 100)), 10_000)["orientation"]


def test_a_tail_tells_size_and_end() -> None:
    same, size, end = tail_fingerprint(9, b"ab"), tail_fingerprint(8, b"ab"), tail_fingerprint(9, b"ac")
    assert same == tail_fingerprint(9, b"ab")
    assert same["digest"].tolist() != size["digest"].tolist()
    assert same["digest"].tolist() != end["digest"].tolist()
    assert same.dtype == FINGERPRINT


def test_of_several_frames_the_first_is_compared() -> None:
    frames = [Image.linear_gradient("L"), Image.radial_gradient("L")]
    several = look_fingerprint(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), 10**8)
    assert (several["pixels"] == look_fingerprint(encoded(frames[0]), 10**8)["pixels"]).all()
