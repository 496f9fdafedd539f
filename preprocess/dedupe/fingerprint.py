"""The fingerprint of an image: by its bytes, by its pixels, and by how it looks.

Three levels. Each level costs more and tells more:

    tail    size in bytes, and a digest of the last 4 KiB: equal for equal files, and nearly free to compute
    bytes   the digest of all bytes: equal for copies of a file under any name
    look    also two values from the decoded, upright image: a digest of its pixels, equal for a file that was saved
            again without loss, and a perceptual hash, close for a resized or re-encoded copy

Both see only brightness, as a JPEG stores it or as it follows from RGB, so a copy in gray is a copy. The digest of an
image without detail is that of its RGB pixels, since two such images may differ in nothing but colour.

Rule: whatever the bytes are, there is a fingerprint. An image that cannot be decoded has no look.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image

from preprocess.dedupe.perceptual_hash import PerceptualHash, perceptual_hash
from shards.errors import ImageError
from shards.images.pixels import (
    check_depth,
    check_size,
    decode_as_luma,
    load_pixels,
    open_image,
    read_orientation,
    to_luma,
    to_rgb,
    upright,
)

Level = Literal["tail", "bytes", "look"]

VERSION = 2
"""Raise it with every change that can alter a fingerprint; then those of earlier builds are computed again"""

FINGERPRINT = np.dtype(
    [
        ("present", np.bool_),  # whether the store has the image
        ("digest", "<u8", (2,)),  # of the bytes; at level tail: the size in bytes and the digest of the tail
        ("orientation", "u1"),  # 1 to 8, and the next three are set; 0: the image was not decoded, or cannot be
        ("pixels", "<u8", (2,)),
        ("hash", "<u8", (4,)),  # perceptual, 256 bits
        ("flat", np.bool_),  # too little detail for the perceptual hash to identify it
    ]
)
BYTES_FINGERPRINT = np.dtype([("present", np.bool_), ("digest", "<u8", (2,))])
"""What the levels tail and bytes say, in a quarter of the memory"""

Fingerprints = npt.NDArray[np.void]
"""One FINGERPRINT, or one BYTES_FINGERPRINT, for each of N images, [N]; or that of a single image, []"""


def kind_of(level: Level) -> np.dtype[np.void]:
    """The type of many fingerprints of a level."""
    return FINGERPRINT if level == "look" else BYTES_FINGERPRINT


def as_kind_of(level: Level, fingerprints: Fingerprints) -> Fingerprints:
    """The fields that the level sets."""
    result = np.zeros(fingerprints.shape, kind_of(level))
    for field in result.dtype.names or ():
        result[field] = fingerprints[field]
    return result


def tail_fingerprint(size: int, tail: bytes) -> Fingerprints:
    """size: of the whole image, in bytes."""
    fingerprint = np.zeros((), FINGERPRINT)
    fingerprint["present"] = True
    fingerprint["digest"] = (size, xxhash.xxh3_64_intdigest(tail))
    return fingerprint


def bytes_fingerprint(data: bytes) -> Fingerprints:
    fingerprint = np.zeros((), FINGERPRINT)
    fingerprint["present"] = True
    fingerprint["digest"] = bytes_digest(data)
    return fingerprint


def bytes_digest(data: bytes) -> tuple[int, int]:
    return _two_words(xxhash.xxh3_128_digest(data))


def look_fingerprint(data: bytes, max_pixels: int) -> Fingerprints:
    """Also decodes the image, unless it is broken or has more than `max_pixels`. Raises MemoryError."""
    fingerprint = bytes_fingerprint(data)
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow warns of odd metadata; the pixels decide here
            image, orientation = _decoded(data, max_pixels, luma=True)
            pixels = upright(to_luma(image), orientation)
            look = perceptual_hash(pixels)
            if look.flat:
                pixels = upright(to_rgb(_decoded(data, max_pixels, luma=False)[0]), orientation)
    except ImageError:
        return fingerprint
    return _with_look(fingerprint, look, pixels, orientation)


def frame_fingerprint(image: Image.Image, file: bytes, number: int) -> Fingerprints:
    """Of an upright RGB frame. Its bytes are those of the file with its number."""
    fingerprint = np.zeros((), FINGERPRINT)
    fingerprint["present"] = True
    digest = xxhash.xxh3_128(file)
    digest.update(number.to_bytes(8, "little"))
    fingerprint["digest"] = _two_words(digest.digest())
    luma = to_luma(image)
    look = perceptual_hash(luma)
    return _with_look(fingerprint, look, image if look.flat else luma, 1)


def _with_look(fingerprint: Fingerprints, look: PerceptualHash, pixels: Image.Image, orientation: int) -> Fingerprints:
    fingerprint["orientation"] = orientation
    fingerprint["pixels"] = pixel_digest(pixels)
    fingerprint["hash"] = look.words
    fingerprint["flat"] = look.flat
    return fingerprint


def _decoded(data: bytes, max_pixels: int, *, luma: bool) -> tuple[Image.Image, int]:
    """The first frame of several, and its orientation. luma: only that of a JPEG. Raises ImageError, MemoryError."""
    image, _ = open_image(data)
    check_size(image, max_pixels)
    check_depth(image, data, sixteen_bit=True)
    if luma:
        decode_as_luma(image)
    load_pixels(image, data)
    return image, read_orientation(image, data)


def pixel_digest(image: Image.Image) -> tuple[int, int]:
    """Of its mode, its size and every pixel."""
    digest = xxhash.xxh3_128(f"{image.mode} {image.width} {image.height} ".encode())
    digest.update(np.asarray(image).data)
    return _two_words(digest.digest())


def _two_words(digest: bytes) -> tuple[int, int]:
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
