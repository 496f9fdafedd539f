"""Stored bytes of an image to the pixels that the encoder sees, written straight into a batch.

Rule: whatever the bytes are, `out` holds the whole image afterwards or there is an ImageError (a ValueError), never
a warning; and no pixel is decoded of an image above the build's own max_pixels. `exact` gives Pillow's pixels, bit for
bit; `fast` stays within 1.5 of 255 of them on average, for any image, and is mostly within 0.01.

    DECODERS["fast"](sample.images[0], build.manifest.config.image, batch[0])

Pillow reads every header but that of the plainest JPEGs, so both decoders refuse what Pillow refuses. simplejpeg, where
it is installed, decodes JPEG files into memory of ours; torch resizes about eight times faster than Pillow. Neither is
needed.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin
from PIL.ImageFile import ImageFile

from shards.images.geometry import Geometry
from shards.images.pixels import (
    PAD_COLOURS,
    check_kind,
    check_size,
    fit,
    load_pixels,
    open_image,
    read_orientation,
    scaled_size,
    to_rgb,
    upright,
)

Pixels = npt.NDArray[np.uint8]


class ImageDecoder(Protocol):
    """Fills out, C-contiguous uint8 [size, size, 3]. Raises ImageError for bytes that are not an image."""

    def __call__(self, data: bytes | memoryview, geometry: Geometry, out: Pixels) -> None: ...


def decode_pillow(data: bytes | memoryview, geometry: Geometry) -> Pixels:
    """The pixels, uint8 [size, size, 3], by Pillow alone: what both decoders are measured against."""
    data = bytes(data)
    with warnings.catch_warnings(action="ignore"):
        return np.asarray(fit(_seen(_header(data, geometry), data), geometry))


def exact(data: bytes | memoryview, geometry: Geometry, out: Pixels) -> None:
    """Pillow's pixels. A stored JPEG that has the right size already is decoded straight into out."""
    if _decoded_plain(data, geometry, out):
        return
    data = bytes(data)
    with warnings.catch_warnings(action="ignore"):
        _exact(_header(data, geometry), data, geometry, out)


def fast(data: bytes | memoryview, geometry: Geometry, out: Pixels) -> None:
    """The same by way of simplejpeg and torch; as `exact` does it where nothing is resized or torch cannot resize."""
    if _decoded_plain(data, geometry, out):
        return
    data = bytes(data)
    with warnings.catch_warnings(action="ignore"):
        image = _header(data, geometry)
        width, height = image.size
        mode = _TORCH_MODES.get(geometry.interpolation)
        is_strip = geometry.fit == "pad" and max(width, height) ** 2 > geometry.max_pixels  # its square is too large
        if width == height == geometry.size or mode is None or is_strip or not _has_torch():
            _exact(image, data, geometry, out)
            return
        # Decoded at full size: libjpeg's own scaling saves half of the time at 12 megapixels and little below that,
        # and fine patterns then differ by up to 13 of 255.
        pixels = np.empty((height, width, 3), np.uint8)
        if not _decoded_jpeg(image, data, pixels):
            pixels = np.array(_seen(image, data))
        _fit_torch(pixels, geometry, mode, out)


DECODERS: Mapping[str, ImageDecoder] = {"exact": exact, "fast": fast}

_TORCH_MODES = {"bicubic": "bicubic", "bilinear": "bilinear"}  # our name -> torch's; it has no Lanczos filter


def _header(data: bytes, geometry: Geometry) -> ImageFile:
    image, _ = open_image(data)
    check_size(image, geometry.max_pixels)
    check_kind(image, data)
    return image


def _exact(image: ImageFile, data: bytes, geometry: Geometry, out: Pixels) -> None:
    if image.size != (geometry.size, geometry.size) or not _decoded_jpeg(image, data, out):
        out[...] = np.asarray(fit(_seen(image, data), geometry))


def _seen(image: ImageFile, data: bytes) -> Image.Image:
    """All pixels, RGB and upright, by Pillow."""
    load_pixels(image, data)
    return upright(to_rgb(image), read_orientation(image, data))


def _decoded_jpeg(image: ImageFile, data: bytes, out: Pixels) -> bool:
    """Fill out, uint8 [height, width, 3], with an upright gray or colour JPEG. False: out is undefined, ask Pillow.

    simplejpeg refuses files that libjpeg warns of. Many of these can still be read: Pillow decides.
    """
    decode_jpeg = _simplejpeg()
    if decode_jpeg is None or not isinstance(image, JpegImagePlugin.JpegImageFile) or image.mode not in ("RGB", "L"):
        return False
    if read_orientation(image, data) != 1:
        return False
    try:
        # The size in out is the one that was checked; libjpeg's own view of a damaged header may be another.
        return decode_jpeg(data, "RGB", buffer=out).shape == out.shape
    except ValueError:
        return False


def _decoded_plain(data: bytes | memoryview, geometry: Geometry, out: Pixels) -> bool:
    """Fill out with a plain JPEG that has the right size already, as `resized` builds store them.

    False: out is undefined, ask Pillow. To have it read this header as well would take 3% of the time.
    """
    size = geometry.size
    decode_jpeg = _simplejpeg()
    if decode_jpeg is None or size * size > geometry.max_pixels or _plain_size(data) != (size, size):
        return False
    try:
        return decode_jpeg(data, "RGB", buffer=out).shape == out.shape
    except ValueError:
        return False


def _plain_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Width and height of a JPEG of 8 bits, gray or YCbCr, that holds nothing but a JFIF header, tables and pixels.

    Source: ITU-T T.81, annex B.
    """
    if bytes(data[: len(_JFIF)]) != _JFIF:
        return None
    offset, size = _JFIF_END, None
    try:
        while data[offset] == 0xFF:
            marker = data[offset + 1]
            if marker == _SCAN:
                return size
            if marker in _FRAMES and size is None and data[offset + 4] == 8 and data[offset + 9] in (1, 3):
                size = data[offset + 7] << 8 | data[offset + 8], data[offset + 5] << 8 | data[offset + 6]
            elif marker not in _TABLES:
                return None
            offset += 2 + (data[offset + 2] << 8 | data[offset + 3])
    except IndexError:  # it is cut off
        pass
    return None


_JFIF = b"\xff\xd8\xff\xe0\0\x10JFIF\0"
_JFIF_END = 20  # without a thumbnail
_FRAMES, _SCAN = {0xC0, 0xC1, 0xC2}, 0xDA
_TABLES = {0xDB, 0xC4, 0xDD}  # quantisation, Huffman, restart interval


def _fit_torch(pixels: Pixels, geometry: Geometry, mode: str, out: Pixels) -> None:
    """What `shards.images.pixels.fit` does to upright RGB pixels [H, W, 3]."""
    import torch

    size = geometry.size
    if geometry.fit == "pad":
        pixels = _on_square(pixels, geometry)
    height, width, _ = pixels.shape
    wide, high = scaled_size(width, height, geometry)
    # The batch axis is made by reshape, which gives it an honest stride: with the one that indexing or unsqueeze give,
    # torch answers in planes instead of channels-last memory, and everything takes half as long again.
    planes = torch.from_numpy(pixels.reshape(1, height, width, 3)).permute(0, 3, 1, 2)
    if height - high > max(0, 2 * (width - wide)) and _tall_first():
        planes = torch.nn.functional.interpolate(planes, (high, width), mode=mode, antialias=True)
    planes = torch.nn.functional.interpolate(planes, (high, wide), mode=mode, antialias=True)
    resized = planes.permute(0, 2, 3, 1).numpy()[0]
    left, top = (wide - size) // 2, (high - size) // 2
    out[...] = resized[top : top + size, left : left + size]


def _on_square(pixels: Pixels, geometry: Geometry) -> Pixels:
    """In the middle of a square of the padding's colour."""
    height, width, _ = pixels.shape
    longest = max(height, width)
    left, top = (longest - width) // 2, (longest - height) // 2
    square = np.empty((longest, longest, 3), np.uint8)
    square[...] = PAD_COLOURS[geometry.pad_colour]
    square[top : top + height, left : left + width] = pixels
    return square


@functools.cache
def _tall_first() -> bool:
    """Whether this Pillow resizes vertically first where an image loses more than twice as many rows as columns.

    Pillow has done so since version 13; before it, and always in torch, the horizontal pass comes first. Bicubic
    overshoots, each pass cuts that off, and so the order shows: by 4 of 255, on average, in black and white specks.
    """
    checks = Image.fromarray(np.indices((12, 4)).sum(axis=0).astype(np.uint8) % 2 * 255)
    vertical = checks.resize((4, 6), Image.Resampling.BICUBIC)
    both = vertical.resize((5, 6), Image.Resampling.BICUBIC)
    return np.array_equal(np.asarray(checks.resize((5, 6), Image.Resampling.BICUBIC)), np.asarray(both))


@functools.cache
def _has_torch() -> bool:
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


@functools.cache
def _simplejpeg() -> Callable[..., Pixels] | None:
    """simplejpeg's decoder, if it is installed and its libjpeg gives the same pixels as Pillow's."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    decoder: Callable[..., Pixels] = decode_jpeg
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (29, 43, 3), np.uint8)
    for subsampling, mode in (("4:2:0", "RGB"), ("4:2:2", "RGB"), ("4:4:4", "RGB"), ("4:4:4", "L")):
        file = BytesIO()
        Image.fromarray(noise).convert(mode).save(file, "JPEG", quality=80, subsampling=subsampling)
        image, _ = open_image(file.getvalue())
        if not np.array_equal(decoder(file.getvalue(), "RGB"), np.asarray(to_rgb(image))):
            return None
    return decoder
