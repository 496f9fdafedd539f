"""Images as Pillow reads them, and as the encoder's square.

Rule: whatever the bytes are, the result is an image or an ImageError, never another exception; the same bytes and
Geometry give the same pixels everywhere. Only memory that runs out is a MemoryError, since it says nothing of the
image. Pillow warns of odd metadata: callers open, load and rotate images with warnings ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, TiffImagePlugin

from shards.errors import ImageError
from shards.images.formats import format_of
from shards.images.geometry import Geometry, Interpolation, PadColour
from shards.images.tiles import ONE_TILE, Grid

T = TypeVar("T")

PAD_COLOURS: dict[PadColour, tuple[int, int, int]] = {
    "clip": (122, 116, 104),
    "siglip": (127, 127, 127),
    "imagenet": (124, 116, 104),
    "black": (0, 0, 0),
}

_FILTERS: dict[Interpolation, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


def open_image(data: bytes) -> tuple[ImageFile.ImageFile, str]:
    """The image, of which only the header is read, and its file extension. The bytes decide, not a name."""
    kind = format_of(data)
    return fenced(lambda: kind.open(data)), kind.extension


def image_extension(head: bytes) -> str:
    """The file extension for an image that begins with these bytes; 1,024 are enough. Raises ImageError."""
    return format_of(head).extension


def check_size(image: Image.Image, max_pixels: int) -> None:
    """Comes before the first pixel is decoded, so that no small file fills the memory."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("too_large", f"{width}x{height} is more than {max_pixels} pixels")


def check_kind(image: ImageFile.ImageFile, data: bytes) -> None:
    """One frame of 8 bits a channel."""
    check_depth(image, data)
    check_frames(image)


def check_depth(image: ImageFile.ImageFile, data: bytes, *, sixteen_bit: bool = False) -> None:
    """8 bits a channel; with `sixteen_bit` also 16, which `to_rgb` scales."""
    if _channel_bits(image, data) > 8 and not (sixteen_bit and is_sixteen_bit(image, data)):
        raise ImageError("format", "more than 8 bits a channel; convert it to 8 bits first")


def check_frames(image: Image.Image) -> None:
    if is_animated(image):
        raise ImageError("animated", "the image has more than one frame; take one out and store it as PNG or JPEG")


def is_animated(image: Image.Image) -> bool:
    """Whether there is a second frame or page."""
    return bool(fenced(lambda: getattr(image, "is_animated", False)))  # for GIF this looks for a second frame


def is_sixteen_bit(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether every channel has 16 bits that count from black, of a PNG or a TIFF."""
    if _channel_bits(image, data) != 16 or image.mode[0] == "F":
        return False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        counts_up = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) in (1, 2)  # black is 0, or RGB
        return counts_up and set(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))) == {1}  # unsigned integers
    return isinstance(image, PngImagePlugin.PngImageFile)


def _channel_bits(image: ImageFile.ImageFile, data: bytes) -> int:
    """From the header, since Pillow shows 16-bit colour as 8-bit RGB."""
    if isinstance(image, PngImagePlugin.PngImageFile):
        return data[24]  # the first chunk is always IHDR
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))))
    return 32 if image.mode[0] in "IF" else 8


def load_pixels(image: ImageFile.ImageFile, data: bytes) -> None:
    """Decode every pixel."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library in the process may have switched it on
    fenced(image.load)
    # Pillow is content once all rows are there; other decoders also want the end.
    if isinstance(image, PngImagePlugin.PngImageFile) and b"IEND" not in data:
        raise ImageError("unreadable", "the file is cut off: a PNG without its end")


def decode_as_luma(image: ImageFile.ImageFile) -> None:
    """Before `load_pixels`: of a JPEG in colour, load only its luma. It finds the same files broken, in less time."""
    fenced(lambda: image.draft("L", image.size))


def read_orientation(image: Image.Image, data: bytes) -> int:
    """The EXIF (or XMP) orientation, 1 to 8; 1 (upright) where there is none, or none that can be read."""
    hidden = isinstance(image, PngImagePlugin.PngImageFile) and b"eXIf" in data  # PNG may keep it behind the pixels
    if not hidden and not image.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}:
        return 1
    try:
        value = fenced(lambda: image.getexif().get(ExifTags.Base.Orientation, 1))
    except ImageError:  # broken metadata does not make an image broken
        return 1
    return int(value) if value in _UPRIGHT else 1


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Width and height of an image of this size once it is upright."""
    width, height = size
    return (height, width) if orientation >= 5 else size  # the four orientations with width and height swapped


def to_luma(image: Image.Image) -> Image.Image:
    """8-bit luma: 0.299 red + 0.587 green + 0.114 blue, rounded."""
    return image if image.mode == "L" else fenced(lambda: to_rgb(image).convert("L"))


def to_rgb(image: Image.Image) -> Image.Image:
    """Palette, gray, CMYK and alpha to RGB as Hugging Face image processors do it: alpha is dropped, not blended.

    16-bit gray keeps its high bytes, as Pillow does it for 16-bit colour.
    """
    if image.mode == "RGB":
        return image
    if image.mode[0] == "I":
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return fenced(lambda: image.convert("RGB"))


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image as seen, rotated and mirrored as its orientation says."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def scaled_size(width: int, height: int, geometry: Geometry, grid: Grid = ONE_TILE) -> tuple[int, int]:
    """Width and height before crop cuts and after pad filled up, as Hugging Face's image processors have it: sizes are
    cut down to whole pixels, not rounded. Raises ImageError for a strip too long to be resized before its crop."""
    if geometry.fit in ("squash", "pad"):
        return grid.canvas(geometry.size)
    size, shortest = geometry.size, min(width, height)
    wide, high = int(size * width / shortest), int(size * height / shortest)
    if wide * high > geometry.max_pixels:
        raise ImageError("too_large", f"{width}x{height} is so long that it would be {wide}x{high} before the crop")
    return wide, high


def padded_size(width: int, height: int, grid: Grid) -> tuple[int, int]:
    """Width and height with borders that give an image the ratio of a grid, rounded up to whole pixels."""
    columns, rows = grid
    if width * rows >= height * columns:
        return width, max(height, -(-width * rows // columns))
    return max(width, -(-height * columns // rows)), height


def fit(image: Image.Image, geometry: Geometry, grid: Grid = ONE_TILE) -> Image.Image:
    """An upright RGB image as the square that the encoder sees, or as the canvas of a grid, which crop does not make.

    Raises ImageError as `scaled_size` does.
    """
    size = geometry.size
    if geometry.fit == "pad":
        return _padded(image, geometry, grid)
    wide, high = scaled_size(*image.size, geometry, grid)
    image = resized(image, (wide, high), geometry)
    if geometry.fit == "crop":
        left, top = (wide - size) // 2, (high - size) // 2
        return image.crop((left, top, left + size, top + size))
    return image


def resized(image: Image.Image, size: tuple[int, int], geometry: Geometry) -> Image.Image:
    """With the geometry's filter. size: width and height."""
    return image.resize(size, _FILTERS[geometry.interpolation])


def _padded(image: Image.Image, geometry: Geometry, grid: Grid) -> Image.Image:
    """In the middle of a rectangle of the padding's colour, which is then resized, as LLaVA-1.5 does it with a square.

    Pillow resizes the rows of a square, rounds, then resizes columns. So its rows are made and resized a few at a time,
    with the same pixels: the square of a long strip would not fit into memory.
    """
    (width, height), (wide, high) = image.size, grid.canvas(geometry.size)
    full_width, full_height = padded_size(width, height, grid)
    colour, resample = PAD_COLOURS[geometry.pad_colour], _FILTERS[geometry.interpolation]
    if grid != ONE_TILE and full_width * full_height <= geometry.max_pixels:  # Pillow chooses what it resizes first
        whole = Image.new("RGB", (full_width, full_height), colour)
        whole.paste(image, ((full_width - width) // 2, (full_height - height) // 2))
        return whole.resize((wide, high), resample)
    narrow = Image.new("RGB", (wide, full_height), colour)
    step = max(1, _PIXELS_AT_ONCE // full_width)
    for first in range(0, height, step):
        rows = image.crop((0, first, width, min(first + step, height)))
        wide_rows = Image.new("RGB", (full_width, rows.height), colour)
        wide_rows.paste(rows, ((full_width - width) // 2, 0))
        narrow.paste(wide_rows.resize((wide, rows.height), resample), (0, (full_height - height) // 2 + first))
    return narrow.resize((wide, high), resample)


_PIXELS_AT_ONCE = 1 << 22

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_OUT_OF_MEMORY = "out of memory"  # how Pillow's decoders, whose errors are numbers, say it


def fenced(call: Callable[[], T]) -> T:
    """Pillow on bytes from outside: its plugins fail on damaged ones in every way that Python knows."""
    try:
        return call()
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from None
    except MemoryError:
        raise
    except Exception as error:
        text = str(error) or type(error).__name__
        if _OUT_OF_MEMORY in text:
            raise MemoryError(text) from None
        if "-bit layers" in text:  # a 12-bit JPEG
            raise ImageError("format", f"{text}; convert it to 8 bits first") from None
        raise ImageError("unreadable", text) from None
