"""Which image format some bytes are in, and how Pillow opens it. The bytes decide, not a name.

Formats of shards are `jpg`, `png`, `webp`, `gif` and `bmp` (FORMAT.md). The compiler reads the others too, and
stores them as PNG.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from shards.errors import ImageError
from shards.images.png_texts import without_large_texts

STORED = frozenset(("jpg", "png", "webp", "gif", "bmp"))
"""The extensions of images in shards"""


class Format(NamedTuple):
    # Plugins are called directly: Image.open would apply Pillow's own pixel limit, whatever ours is, and for an MPO (a
    # phone's JPEG with more images behind it) read the whole list of them.
    open: Callable[[bytes], ImageFile.ImageFile]
    extension: str


def format_of(data: bytes) -> Format:
    """The format of an image that begins with these bytes; 1,024 are enough. Raises ImageError."""
    kind = next((kind for start, kind in _FORMATS.items() if data.startswith(start)), None)
    if kind:
        return kind
    if not data:
        raise ImageError("unreadable", "the file is empty")
    if _is_avif(data):
        if not reads_avif():
            raise ImageError("format", "AVIF is read with Pillow 11.3 or newer; install it, or convert the image")
        return Format(_open_avif, "avif")
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    for offset, mark, name in _UNSUPPORTED:
        if head.startswith(mark, offset):
            raise _unsupported(name)
    if head.startswith(b"<?xml") and b"<svg" in head:
        raise _unsupported("SVG")
    raise ImageError("unreadable", f"no image: the file starts with {data[:12]!r}")


def reads_avif() -> bool:
    """Whether this Pillow does; before 11.3 it has no plugin, and its `features` warns of the question."""
    return importlib.util.find_spec("PIL.AvifImagePlugin") is not None and features.check("avif") is True


def _open_png(data: bytes) -> ImageFile.ImageFile:
    return PngImagePlugin.PngImageFile(BytesIO(without_large_texts(data)))


def _open_avif(data: bytes) -> ImageFile.ImageFile:
    from PIL import AvifImagePlugin

    return AvifImagePlugin.AvifImageFile(BytesIO(data))


_TIFF = Format(lambda data: TiffImagePlugin.TiffImageFile(BytesIO(data)), "tiff")

_FORMATS: dict[bytes, Format] = {
    b"\xff\xd8\xff": Format(lambda data: JpegImagePlugin.JpegImageFile(BytesIO(data)), "jpg"),
    b"\x89PNG\r\n\x1a\n": Format(_open_png, "png"),
    b"RIFF": Format(lambda data: WebPImagePlugin.WebPImageFile(BytesIO(data)), "webp"),
    b"GIF8": Format(lambda data: GifImagePlugin.GifImageFile(BytesIO(data)), "gif"),
    b"BM": Format(lambda data: BmpImagePlugin.BmpImageFile(BytesIO(data)), "bmp"),
    b"II*\0": _TIFF,
    b"MM\0*": _TIFF,
}

# Offset, bytes there, name.
_UNSUPPORTED: tuple[tuple[int, bytes, str], ...] = (
    (0, b"<svg", "SVG"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"II+\0", "BigTIFF"),
    (0, b"MM\0+", "BigTIFF"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (4, b"jP  ", "JPEG 2000"),
    (4, b"ftyphe", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
)


def _is_avif(data: bytes) -> bool:
    """By the major brand, or a compatible one where the major brand is of all HEIF files (ISO/IEC 14496-12, 4.3)."""
    if data[4:8] != b"ftyp":
        return False
    return data[8:12] in (b"avif", b"avis") or (data[8:12] in (b"mif1", b"msf1") and b"avif" in data[16:64])


def _unsupported(name: str) -> ImageError:
    return ImageError("format", f"{name} is not supported; convert it to JPEG, PNG or WebP")
