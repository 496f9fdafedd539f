"""Fingerprints of images: equal for copies, close for what looks the same, and there for any bytes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from preprocess.dedupe.fingerprint import FINGERPRINT, bytes_fingerprint, look_fingerprint, tail_fingerprint
from preprocess.dedupe.perceptual_hash import perceptual_hash
from tests.support.small_blends import SAMPLES, jpeg

PHOTOS = [path for path in sorted(SAMPLES.rglob("*.jpg")) if path.stat().st_size > 2000][:12]


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def distance(left: Image.Image, right: Image.Image) -> int:
    pairs = zip(perceptual_hash(left).words, perceptual_hash(right).words, strict=True)
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


def test_a_hash_is_the_same_on_every_machine() -> None:
    steps = (np.arange(300 * 280 * 3, dtype=np.int64) ** 2 // 7 % 251).astype(np.uint8).reshape(280, 300, 3)
    assert perceptual_hash(Image.fromarray(steps)).words == GOLDEN


GOLDEN = (0x8555F5358555D515, 0x85555515C555D511, 0x8555D511855DD535, 0x855F3FAE6FE0350B)


def test_half_of_the_bits_are_set() -> None:
    assert sum(word.bit_count() for word in perceptual_hash(photo(PHOTOS[0])).words) == 128


@pytest.mark.parametrize("colour", ["white", "black", "gray"])
def test_an_image_of_one_colour_is_flat(colour: str) -> None:
    assert perceptual_hash(Image.new("RGB", (300, 200), colour)).flat
    assert not perceptual_hash(photo(PHOTOS[0])).flat


@pytest.mark.parametrize("size", [(1, 1), (2, 500), (3000, 3), (63, 64), (129, 257)])
def test_an_image_of_any_size_has_a_hash(size: tuple[int, int]) -> None:
    assert len(perceptual_hash(Image.linear_gradient("L").resize(size).convert("RGB")).words) == 4


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
    assert not fingerprint["decoded"]
    assert (fingerprint["digest"] == bytes_fingerprint(data)["digest"]).all()


def test_an_image_with_too_many_pixels_is_not_decoded() -> None:
    assert not look_fingerprint(jpeg(1, size=(100, 100)), 9_999)["decoded"]
    assert look_fingerprint(jpeg(1, size=(100, 100)), 10_000)["decoded"]


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
