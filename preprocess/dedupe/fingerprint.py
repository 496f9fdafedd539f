"""The fingerprint of an image: by its bytes, by its pixels, and by how it looks.

Three levels. Each level costs more and tells more:

    tail    size in bytes, and a digest of the last 4 KiB: equal for equal files, and nearly free to compute
    bytes   the digest of all bytes: equal for copies of a file under any name
    look    also two values from the decoded, upright RGB image: a digest of its pixels, equal for a file that was saved
            again without loss, and a perceptual hash, close for a resized or re-encoded copy

Rule: whatever the bytes are, there is a fingerprint. An image that cannot be decoded has no look.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image

from preprocess.dedupe.perceptual_hash import perceptual_hash
from shards.errors import ImageError
from shards.images.pixels import check_depth, check_size, load_pixels, open_image, read_orientation, to_rgb, upright

Level = Literal["tail", "bytes", "look"]

VERSION = 1
"""Raise it with every change that can alter a fingerprint; then those of earlier builds are computed again"""

FINGERPRINT = np.dtype(
    [
        ("present", np.bool_),  # whether the store has the image
        ("digest", "<u8", (2,)),  # of the bytes; at level tail: the size in bytes and the digest of the tail
        ("decoded", np.bool_),  # whether the next three are set
        ("pixels", "<u8", (2,)),
        ("hash", "<u8", (4,)),  # perceptual, 256 bits
        ("flat", np.bool_),  # too little detail for the perceptual hash to identify it
    ]
)
Fingerprints = npt.NDArray[np.void]
"""One FINGERPRINT for each of N images, [N]; or that of a single image, []"""


def tail_fingerprint(size: int, tail: bytes) -> Fingerprints:
    """size: of the whole image, in bytes."""
    fingerprint = np.zeros((), FINGERPRINT)
    fingerprint["present"] = True
    fingerprint["digest"] = (size, xxhash.xxh3_64_intdigest(tail))
    return fingerprint


def bytes_fingerprint(data: bytes) -> Fingerprints:
    fingerprint = np.zeros((), FINGERPRINT)
    fingerprint["present"] = True
    fingerprint["digest"] = _two_words(xxhash.xxh3_128_digest(data))
    return fingerprint


def look_fingerprint(data: bytes, max_pixels: int) -> Fingerprints:
    """Also decodes the image, unless it is broken or has more than `max_pixels`. Raises MemoryError."""
    fingerprint = bytes_fingerprint(data)
    image = decode_upright(data, max_pixels)
    return fingerprint if image is None else _with_look(fingerprint, image)


def frame_fingerprint(image: Image.Image, file: bytes, number: int) -> Fingerprints:
    """Of an upright RGB frame. Its bytes are those of the file with its number."""
    fingerprint = np.zeros((), FINGERPRINT)
    fingerprint["present"] = True
    digest = xxhash.xxh3_128(file)
    digest.update(number.to_bytes(8, "little"))
    fingerprint["digest"] = _two_words(digest.digest())
    return _with_look(fingerprint, image)


def _with_look(fingerprint: Fingerprints, image: Image.Image) -> Fingerprints:
    look = perceptual_hash(image)
    fingerprint["decoded"] = True
    fingerprint["pixels"] = pixel_digest(image)
    fingerprint["hash"] = look.words
    fingerprint["flat"] = look.flat
    return fingerprint


def decode_upright(data: bytes, max_pixels: int) -> Image.Image | None:
    """The upright RGB image, the first frame of several; None for bytes that no policy accepts. Raises MemoryError."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow warns of odd metadata; the pixels decide here
            image, _ = open_image(data)
            check_size(image, max_pixels)
            check_depth(image, data, sixteen_bit=True)
            load_pixels(image, data)
            orientation = read_orientation(image, data)
            return upright(to_rgb(image), orientation)
    except ImageError:
        return None


def pixel_digest(image: Image.Image) -> tuple[int, int]:
    """Of an RGB image: its size and every pixel."""
    digest = xxhash.xxh3_128(np.array(image.size, "<u4").tobytes())
    digest.update(np.asarray(image).data)
    return _two_words(digest.digest())


def _two_words(digest: bytes) -> tuple[int, int]:
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
