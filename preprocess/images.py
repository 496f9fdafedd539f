"""Check a picture and, if asked to, shrink it to what the encoder sees.

Rule: whatever the bytes are, the answer is a StoredImage or an ImageError, never another exception and never a warning;
and the same bytes and policy give the same answer everywhere. Only memory that runs out is a MemoryError, since it says
nothing of the picture. The format is read from the bytes, not from the name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, NamedTuple, TypeVar

from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from preprocess.image_error import ImageError

__all__ = ["PAD_COLOURS", "ImageError", "ImagePolicy", "StoredImage", "prepare_image", "to_rgb"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePolicy:
    """What happens to each picture on its way into a shard."""

    store: Literal["original", "resized"] = "original"
    """original keeps the file's bytes; resized stores a small picture, which training loads about ten times faster."""
    check: Literal["decode", "header"] = "decode"
    """decode proves every picture whole; header reads only sizes, for data that a build has already proved."""
    size: int = 336
    """Side of a resized picture in pixels: the encoder's input size."""
    fit: Literal["crop", "squash", "pad"] = "crop"
    """crop: short side to size, then its centre (CLIP); squash: both sides (SigLIP); pad: long side (LLaVA)."""
    pad_colour: Literal["clip", "siglip", "imagenet", "black"] = "clip"
    """Colour of pad's borders: the mean that the encoder subtracts, so that a border reads as nothing."""
    interpolation: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"
    """The resampling filter of the encoder's own preprocessing."""
    format: Literal["jpeg", "png"] = "jpeg"
    """How resized pictures are stored; png keeps each pixel and takes about five times the space."""
    quality: int = 95
    """JPEG quality; below 90 the encoder starts to see the difference."""
    subsampling: Literal["4:4:4", "4:2:0"] = "4:4:4"
    """JPEG colour resolution; 4:2:0 saves about a fifth of the space and blurs coloured text."""
    min_side: int = 2
    """Pictures with a shorter side are rejected; 2 catches the 1x1 stand-ins for covers that a shop no longer has."""
    max_pixels: int = 100_000_000
    """Pictures with more pixels are rejected before anything is decoded. Raise it for scans and maps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """A picture as it goes into a shard. width and height are as seen: with the EXIF orientation applied."""

    data: bytes
    extension: str
    width: int
    height: int


PAD_COLOURS = {"clip": (122, 116, 104), "siglip": (127, 127, 127), "imagenet": (124, 116, 104), "black": (0, 0, 0)}


def prepare_image(data: bytes, policy: ImagePolicy) -> StoredImage:
    """Raises ImageError with the reason why the picture is rejected; MemoryError if there is not enough of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata; the pixels decide here
        image, extension = _open(data)
        _check(image, data, policy)
        if policy.store == "original" and policy.check == "header":
            orientation = _orientation(image, data)
        else:
            _decode(image, data)
            orientation = _orientation(image, data)
        if policy.store == "resized":
            return _resized(image, orientation, policy)
    width, height = image.size
    if orientation >= 5:  # the four orientations that lie on their side
        width, height = height, width
    return StoredImage(data=data, extension=extension, width=width, height=height)


def to_rgb(image: Image.Image) -> Image.Image:
    """Palette, gray, CMYK and alpha to RGB as Hugging Face image processors do it: alpha is dropped, not blended."""
    return image if image.mode == "RGB" else image.convert("RGB")


class _Format(NamedTuple):
    # Plugins are called directly: Image.open would apply Pillow's own pixel limit, whatever ours is, and for an MPO (a
    # phone's JPEG with more pictures behind it) read the whole list of them.
    open: Callable[[BytesIO], ImageFile.ImageFile]
    extension: str


_FORMATS: dict[bytes, _Format] = {
    b"\xff\xd8\xff": _Format(JpegImagePlugin.JpegImageFile, "jpg"),
    b"\x89PNG\r\n\x1a\n": _Format(PngImagePlugin.PngImageFile, "png"),
    b"RIFF": _Format(WebPImagePlugin.WebPImageFile, "webp"),
    b"GIF8": _Format(GifImagePlugin.GifImageFile, "gif"),
    b"BM": _Format(BmpImagePlugin.BmpImageFile, "bmp"),
}

# Offset, bytes there, name.
_UNSUPPORTED: tuple[tuple[int, bytes, str], ...] = (
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"<svg", "SVG"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (4, b"jP  ", "JPEG 2000"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphe", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
)

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}

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


def _open(data: bytes) -> tuple[ImageFile.ImageFile, str]:
    """Read the header. Nothing is decoded."""
    kind = next((kind for start, kind in _FORMATS.items() if data.startswith(start)), None)
    if kind:
        return _fenced(lambda: kind.open(BytesIO(data))), kind.extension
    if not data:
        raise ImageError("image_unreadable", "the file is empty")
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    for offset, mark, name in _UNSUPPORTED:
        if head.startswith(mark, offset):
            raise _unsupported(name)
    if head.startswith(b"<?xml") and b"<svg" in head:
        raise _unsupported("SVG")
    raise ImageError("image_unreadable", f"no image: the file starts with {data[:12]!r}")


def _check(image: ImageFile.ImageFile, data: bytes, policy: ImagePolicy) -> None:
    """What the header alone decides; comes before the first pixel is decoded."""
    width, height = image.size
    if width * height > policy.max_pixels:
        raise ImageError("image_too_large", f"{width}x{height} is more than {policy.max_pixels} pixels")
    if min(width, height) < policy.min_side:
        raise ImageError("image_too_small", f"{width}x{height}; wanted sides of at least {policy.min_side} pixels")
    # Pillow shows 16-bit colour PNG as 8-bit RGB, so the depth is read from the header: the first chunk is always IHDR.
    deep_png = isinstance(image, PngImagePlugin.PngImageFile) and data[24] > 8
    if deep_png or image.mode[0] in "IF":
        raise ImageError("image_format", "more than 8 bits a channel; convert it to 8 bits first")
    if _fenced(lambda: getattr(image, "is_animated", False)):  # for GIF this looks for a second frame
        raise ImageError(
            "image_animated", "the image has more than one frame; take one out and store it as PNG or JPEG"
        )


def _decode(image: ImageFile.ImageFile, data: bytes) -> None:
    """Decode every pixel."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library in the process may have switched it on
    _fenced(image.load)
    # Pillow is content once all rows are there; other decoders also want the end.
    if isinstance(image, PngImagePlugin.PngImageFile) and b"IEND" not in data:
        raise ImageError("image_unreadable", "the file is cut off: a PNG without its end")


def _orientation(image: ImageFile.ImageFile, data: bytes) -> int:
    """The EXIF (or XMP) orientation, 1 to 8; 1 (upright) where there is none, or none that can be read."""
    hidden = isinstance(image, PngImagePlugin.PngImageFile) and b"eXIf" in data  # PNG may keep it behind the pixels
    if not hidden and not image.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}:
        return 1
    try:
        value = _fenced(lambda: image.getexif().get(ExifTags.Base.Orientation, 1))
    except ImageError:  # broken metadata makes no broken picture
        return 1
    return int(value) if value in _UPRIGHT else 1


def _resized(image: Image.Image, orientation: int, policy: ImagePolicy) -> StoredImage:
    image = _fenced(lambda: to_rgb(image))
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    image = _fit(image, policy)
    image.info = {}  # Pillow would write comments and colour profiles into the new file
    buffer = BytesIO()
    if policy.format == "jpeg":
        image.save(buffer, "JPEG", quality=policy.quality, subsampling=policy.subsampling)
    else:
        image.save(buffer, "PNG")
    extension = "jpg" if policy.format == "jpeg" else "png"
    return StoredImage(data=buffer.getvalue(), extension=extension, width=image.width, height=image.height)


def _fit(image: Image.Image, policy: ImagePolicy) -> Image.Image:
    """The geometry of Hugging Face's image processors: sizes are cut down to whole pixels, not rounded."""
    size, resample = policy.size, _FILTERS[policy.interpolation]
    width, height = image.size
    if policy.fit == "squash":
        return image.resize((size, size), resample)
    if policy.fit == "pad":
        longest = max(width, height)
        image = image.resize((max(1, size * width // longest), max(1, size * height // longest)), resample)
        square = Image.new("RGB", (size, size), PAD_COLOURS[policy.pad_colour])
        square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        return square
    shortest = min(width, height)
    wide, high = int(size * width / shortest), int(size * height / shortest)
    if wide * high > policy.max_pixels:
        raise ImageError(
            "image_too_large", f"{width}x{height} is so long that it would be {wide}x{high} before the crop"
        )
    left, top = (wide - size) // 2, (high - size) // 2
    return image.resize((wide, high), resample).crop((left, top, left + size, top + size))


def _fenced(call: Callable[[], T]) -> T:
    """Pillow on bytes from outside: its plugins fail on damaged ones in every way that Python knows."""
    try:
        return call()
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large", str(error)) from None
    except MemoryError:
        raise
    except Exception as error:
        text = str(error) or type(error).__name__
        if _OUT_OF_MEMORY in text:
            raise MemoryError(text) from None
        if "-bit layers" in text:  # a 12-bit JPEG
            raise ImageError("image_format", f"{text}; convert it to 8 bits first") from None
        raise ImageError("image_unreadable", text) from None


def _unsupported(name: str) -> ImageError:
    return ImageError("image_format", f"{name} is not supported; convert it to JPEG, PNG or WebP")
