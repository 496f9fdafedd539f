"""Images of every kind, what a decoder makes of them, and the pixels that it should make."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from shards.images.decode import DECODERS, Pixels
from shards.images.geometry import Geometry
from shards.images.pixels import PAD_COLOURS
from tests.support.image_files import encoded
from tests.support.paths import ROOT

PHOTOS = sorted((ROOT / "examples" / "data").rglob("*.jpg"))
CROP = Geometry(size=64, fit="crop", pad_colour="clip", interpolation="bicubic", max_pixels=4_000_000)
CLOSE = 1.5  # of 255, on average: how far the fast decoder may be from the exact one


def photo(width: int, height: int) -> Image.Image:
    with Image.open(PHOTOS[-1]) as image:
        return image.convert("RGB").resize((width, height))


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
    out: Pixels = np.full((1, geometry.size, geometry.size, 3), 77, np.uint8)
    DECODERS[name](data, geometry, out)
    square: Pixels = out[0]
    return square


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
