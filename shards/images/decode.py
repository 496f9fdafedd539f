"""Stored bytes of an image to the pixels that the encoder sees, written straight into a batch.

An image is one square or several tiles (shards.images.tiles): what is stored is fitted to the canvas of its grid.

Rule: whatever the bytes are, `out` holds the whole image afterwards or there is an ImageError (a ValueError), never
a warning; and no pixel is decoded of an image above the build's own max_pixels. `exact` gives Pillow's pixels, bit for
bit; `fast` stays within 1.5 of 255 of them on average, for any image, and is mostly within 0.01.

    DECODERS["fast"](sample.images[0], build.manifest.config.image, batch[0:1])

Pillow reads every header but that of the plainest JPEGs, so both decoders refuse what Pillow refuses. simplejpeg, where
it is installed, decodes JPEG files into memory of ours; torch resizes about eight times faster than Pillow. Neither is
needed.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin
from PIL.ImageFile import ImageFile

from shards.images.geometry import Geometry
from shards.images.pixels import (
    check_kind,
    check_size,
    fit,
    load_pixels,
    open_image,
    padded_size,
    read_orientation,
    resized,
    to_rgb,
    upright,
    upright_size,
)
from shards.images.tiles import ONE_TILE, Grid, cut
from shards.images.torch_fit import can_resize, fit_torch, resized_torch

Pixels = npt.NDArray[np.uint8]


class ImageDecoder(Protocol):
    """Fills out, C-contiguous uint8 [tiles, size, size, 3]. Raises ImageError for bytes that are not an image."""

    def __call__(
        self,
        data: bytes | memoryview,
        geometry: Geometry,
        out: Pixels,
        grid: Grid = ONE_TILE,
        *,
        is_canvas: bool = False,
    ) -> None:
        """is_canvas: the image is the canvas of its grid already, as `resized` builds store it."""


def decode_pillow(
    data: bytes | memoryview, geometry: Geometry, grid: Grid = ONE_TILE, *, is_canvas: bool = False
) -> Pixels:
    """The pixels, uint8 [tiles, size, size, 3], by Pillow alone: what both decoders are measured against."""
    data = bytes(data)
    with warnings.catch_warnings(action="ignore"):
        return image_tiles(_seen(_header(data, geometry), data), geometry, grid, is_canvas=is_canvas)


def image_tiles(image: Image.Image, geometry: Geometry, grid: Grid = ONE_TILE, *, is_canvas: bool = False) -> Pixels:
    """The pixels of an upright RGB image, uint8 [tiles, size, size, 3]. is_canvas: as decoders take it."""
    out = np.empty((grid.tiles, geometry.size, geometry.size, 3), np.uint8)
    canvas = fit(image, geometry, grid)
    cut(np.asarray(canvas), grid, out)
    if grid != ONE_TILE:
        if is_canvas or geometry.fit == "pad":
            out[-1] = np.asarray(canvas.reduce(grid))
        else:
            out[-1] = np.asarray(resized(image, (geometry.size, geometry.size), geometry))
    return out


def exact(
    data: bytes | memoryview, geometry: Geometry, out: Pixels, grid: Grid = ONE_TILE, *, is_canvas: bool = False
) -> None:
    """Pillow's pixels. A stored JPEG that has the right size already is decoded straight into out, or its canvas."""
    _decode(data, geometry, out, grid, is_canvas, _fill_exact)


def fast(
    data: bytes | memoryview, geometry: Geometry, out: Pixels, grid: Grid = ONE_TILE, *, is_canvas: bool = False
) -> None:
    """The same by way of simplejpeg and torch; as `exact` does it where nothing is resized or torch cannot resize."""
    _decode(data, geometry, out, grid, is_canvas, _fill_fast)


def seen_size(data: bytes, geometry: Geometry) -> tuple[int, int]:
    """Width and height of an image as seen, from its header. Raises ImageError."""
    with warnings.catch_warnings(action="ignore"):
        image = _header(data, geometry)
        return upright_size(image.size, read_orientation(image, data))


DECODERS: Mapping[str, ImageDecoder] = {"exact": exact, "fast": fast}


@dataclass(frozen=True, slots=True)
class _Target:
    """Where an image goes: its canvas, uint8 [rows * size, columns * size, 3], and its overview [size, size, 3]."""

    geometry: Geometry
    grid: Grid
    canvas: Pixels
    overview: Pixels | None
    """If it is made of the image itself; else of the canvas, or the canvas is all there is"""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the canvas."""
        return self.grid.canvas(self.geometry.size)


def _decode(
    data: bytes | memoryview,
    geometry: Geometry,
    out: Pixels,
    grid: Grid,
    is_canvas: bool,
    fill: Callable[[ImageFile, bytes, _Target], None],
) -> None:
    if grid == ONE_TILE:
        target = _Target(geometry, grid, out[0], None)
    else:
        wide, high = grid.canvas(geometry.size)
        of_canvas = is_canvas or geometry.fit == "pad"
        target = _Target(geometry, grid, np.empty((high, wide, 3), np.uint8), None if of_canvas else out[-1])
    if target.overview is not None or not _decoded_plain(data, target):
        data = bytes(data)
        with warnings.catch_warnings(action="ignore"):
            fill(_header(data, geometry), data, target)
    if grid == ONE_TILE:
        return
    cut(target.canvas, grid, out)
    if target.overview is None:
        # The mean of each pixel's block. The canvas of a smaller image is an enlargement, of which this is closer to
        # the image's own overview than its filter would be, and it takes a tenth of the time.
        out[-1] = np.asarray(Image.fromarray(target.canvas).reduce(grid))


def _header(data: bytes, geometry: Geometry) -> ImageFile:
    image, _ = open_image(data)
    check_size(image, geometry.max_pixels)
    check_kind(image, data)
    return image


def _fill_exact(image: ImageFile, data: bytes, target: _Target) -> None:
    geometry = target.geometry
    if target.overview is None and image.size == target.size and _decoded_jpeg(image, data, target.canvas):
        return
    seen = _seen(image, data)
    target.canvas[...] = np.asarray(fit(seen, geometry, target.grid))
    if target.overview is not None:
        target.overview[...] = np.asarray(resized(seen, (geometry.size, geometry.size), geometry))


def _fill_fast(image: ImageFile, data: bytes, target: _Target) -> None:
    geometry, (width, height) = target.geometry, image.size
    wide, high = padded_size(width, height, target.grid)
    is_strip = geometry.fit == "pad" and wide * high > geometry.max_pixels  # its canvas is too large
    is_ready = target.overview is None and image.size == target.size
    if is_ready or is_strip or not can_resize(geometry):
        _fill_exact(image, data, target)
        return
    # Decoded at full size: libjpeg's own scaling saves half of the time at 12 megapixels and little below that, and
    # fine patterns then differ by up to 13 of 255.
    pixels = np.empty((height, width, 3), np.uint8)
    if not _decoded_jpeg(image, data, pixels):
        pixels = np.array(_seen(image, data))
    fit_torch(pixels, geometry, target.grid, target.canvas)
    if target.overview is not None:
        target.overview[...] = resized_torch(pixels, (geometry.size, geometry.size), geometry)


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


def _decoded_plain(data: bytes | memoryview, target: _Target) -> bool:
    """Fill the canvas with a plain JPEG that has its size already, as `resized` builds store them.

    False: the canvas is undefined, ask Pillow. To have it read this header as well would take 3% of the time.
    """
    wide, high = target.size
    decode_jpeg = _simplejpeg()
    if decode_jpeg is None or wide * high > target.geometry.max_pixels or _plain_size(data) != (wide, high):
        return False
    try:
        return decode_jpeg(data, "RGB", buffer=target.canvas).shape == target.canvas.shape
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
