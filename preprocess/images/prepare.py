"""Check an image and, if the policy says so, shrink it to what the encoder sees.

Rule: whatever the bytes are, the result is a StoredImage or a RejectError, never another exception or a warning, except
MemoryError, which says nothing about the image. The same bytes and policy give the same result everywhere. The format
is read from the bytes, not from the name. With `store: original` the bytes are kept, except where a reader of shards
could not decode them to the same pixels (AVIF, TIFF, one of several frames, 16 bits): these become PNG, without loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Annotated, Literal

from annotated_types import Ge, Le
from PIL import Image
from PIL.ImageFile import ImageFile

from dst.common.config_class import Matches, Positive, config_class
from preprocess.containers.marks import LFS_ADVICE, is_lfs_pointer
from preprocess.errors import RejectError
from preprocess.images.animations import ShownFrame
from preprocess.images.videos import video_format
from shards.errors import ImageError
from shards.images.formats import STORED
from shards.images.geometry import Fit, Geometry, GridRule, Interpolation, PadColour
from shards.images.pixels import (
    check_depth,
    check_size,
    fit,
    is_animated,
    is_sixteen_bit,
    load_pixels,
    open_image,
    read_orientation,
    to_rgb,
    upright,
    upright_size,
)
from shards.images.tiles import ONE_TILE, Grid

__all__ = ["FrameChoice", "ImagePolicy", "StoredImage", "even_count", "prepare_frame", "prepare_image", "seen_size"]

FrameChoice = Literal["reject", "first"] | Annotated[str, Matches(r"even:[1-9][0-9]{0,3}", "even:N, such as even:8")]


@config_class
class ImagePolicy:
    """How each image is checked, resized and stored."""

    store: Literal["original", "resized"] = "original"
    """original keeps the bytes (AVIF, TIFF: as PNG); resized stores small images, which load 6 to 11 times faster."""
    check: Literal["decode", "header"] = "decode"
    """decode decodes every image completely; header reads only its size, for data that an earlier build decoded."""
    size: Annotated[int, Ge(8), Le(8192)] = 336
    """Side of a resized image in pixels: the encoder's input size."""
    fit: Fit = "crop"
    """crop: short side to size, then its centre (CLIP); squash: both sides (SigLIP); pad: to a square, then to size
    (LLaVA-1.5)."""
    pad_colour: PadColour = "clip"
    """Colour of pad's borders: the mean that the encoder subtracts, so that a border becomes zero."""
    interpolation: Interpolation = "bicubic"
    """The resampling filter of the encoder's own preprocessing."""
    format: Literal["jpeg", "png"] = "jpeg"
    """Format of resized images; png is lossless and takes about five times the space."""
    quality: Annotated[int, Ge(1), Le(100)] = 95
    """JPEG quality; below 90 the encoder's input starts to differ visibly."""
    subsampling: Literal["4:4:4", "4:2:0"] = "4:4:4"
    """JPEG chroma subsampling; 4:2:0 saves about a fifth of the space and blurs coloured text."""
    tiles: Annotated[int, Ge(1), Le(64)] = 1
    """Most tiles of size x size that an image is cut into; with more than one it also gets an overview (docs/tiles.md).
    Needs fit: squash (InternVL) or pad."""
    tiles_multi: Annotated[int, Ge(1), Le(64)] = 1
    """The same for each image of a sample with several, which LLaVA-NeXT trains with one tile each."""
    grid: GridRule = "ratio"
    """Which grid of tiles an image gets. ratio: the closest to its ratio of width to height (InternVL); resolution: the
    one that keeps most of its pixels and wastes least (LLaVA-NeXT)."""
    frames: FrameChoice = "reject"
    """Animations and videos. first keeps the first frame of an animation, or page of a TIFF (note `first_frame`);
    even:8 shows 8 evenly spaced frames of an animation, a video or a folder of frames (docs/videos.md)."""
    sixteen_bit: Literal["reject", "scale"] = "reject"
    """scale reads 16 bits a channel (PNG, TIFF) as 8, the high bytes, and counts the note `scaled_to_8_bits`."""
    min_side: Positive = 2
    """Images with a shorter side are rejected; 2 catches the 1x1 placeholders of covers that a shop removed."""
    max_pixels: Positive = 100_000_000
    """Images with more pixels are rejected before decoding. Raise it for scans and maps."""

    @property
    def geometry(self) -> Geometry:
        return Geometry(
            size=self.size,
            fit=self.fit,
            pad_colour=self.pad_colour,
            interpolation=self.interpolation,
            max_pixels=self.max_pixels,
            grid=self.grid,
            tiles=self.tiles,
            tiles_multi=self.tiles_multi,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """An image as it goes into a shard. width and height in pixels, with the EXIF orientation applied.

    original_size: width and height before resizing, upright as well. notes: what was changed, as names of NOTES.
    time_s: of a video's frame, in seconds from the first one. grid: of its tiles; a resized image is their canvas.
    """

    data: bytes
    extension: str
    width: int
    height: int
    original_size: tuple[int, int]
    notes: tuple[str, ...] = ()
    time_s: float | None = None
    grid: Grid = ONE_TILE


EVEN_ADVICE = "set frames: even:8 on the dataset to show 8 evenly spaced frames"


def even_count(frames: str) -> int:
    """N of even:N; 0 for the other values of `frames`."""
    return int(frames.removeprefix("even:")) if frames.startswith("even:") else 0


def seen_size(data: bytes, policy: ImagePolicy) -> tuple[int, int]:
    """Width and height as seen, of which only the header is read. Raises RejectError as `prepare_image` does."""
    with _refused(data), warnings.catch_warnings(action="ignore"):
        image, _ = open_image(data)
        check_size(image, policy.max_pixels)
        return upright_size(image.size, read_orientation(image, data))


def prepare_image(
    data: bytes, policy: ImagePolicy, *, grid: Grid = ONE_TILE, decoded: int | None = None
) -> StoredImage:
    """Check and encode an image. Raises RejectError with the reason, MemoryError if memory runs out.

    grid: of its tiles. decoded: its orientation, if these bytes were decoded before without an error; only a policy
    that needs the pixels decodes them again.
    """
    with _refused(data), warnings.catch_warnings(action="ignore"):  # Pillow warns of odd metadata; the pixels decide
        return replace(_prepared(data, policy, grid, decoded), grid=grid)


def prepare_frame(frame: ShownFrame, policy: ImagePolicy, *, grid: Grid = ONE_TILE) -> StoredImage:
    """Check and encode a frame of an animation or a video, which has no bytes of its own.

    It is stored as PNG with `store: original`. Raises RejectError with the reason, MemoryError if memory runs out.
    """
    image = frame.image
    _check_side(image, policy)
    try:
        if policy.store == "original":
            stored = _encoded(image, "png", policy, image.size, frame.notes)
        else:
            stored = _encoded(fit(image, policy.geometry, grid), policy.format, policy, image.size, frame.notes)
    except ImageError as error:
        raise RejectError(f"image_{error.reason}", error.detail) from None
    return replace(stored, time_s=frame.time_s, grid=grid)


@contextmanager
def _refused(data: bytes) -> Iterator[None]:
    """Raises RejectError in place of the ImageError of these bytes."""
    try:
        yield
    except ImageError as error:
        if video_format(data):
            raise RejectError("image_format", f"it is a video; {EVEN_ADVICE}") from None
        raise refusal(error, data) from None


def refusal(error: ImageError, data: bytes) -> RejectError:
    """The reject for bytes that cannot be read."""
    if is_lfs_pointer(data):
        return RejectError("image_unreadable", f"it {LFS_ADVICE}")
    return RejectError(f"image_{error.reason}", error.detail)


def _check_side(image: Image.Image, policy: ImagePolicy) -> None:
    if min(image.size) < policy.min_side:
        width, height = image.size
        raise RejectError("image_too_small", f"{width}x{height}; expected sides of at least {policy.min_side} pixels")


def _prepared(data: bytes, policy: ImagePolicy, grid: Grid, decoded: int | None) -> StoredImage:
    image, extension = open_image(data)
    check_size(image, policy.max_pixels)
    _check_side(image, policy)
    notes = _accepted_changes(image, data, policy)
    as_png = policy.store == "original" and (bool(notes) or extension not in STORED)
    if policy.store == "resized" or as_png or (policy.check == "decode" and decoded is None):
        load_pixels(image, data)
    orientation = decoded or read_orientation(image, data)
    width, height = upright_size(image.size, orientation)
    if policy.store == "resized":
        fitted = fit(upright(to_rgb(image), orientation), policy.geometry, grid)
        return _encoded(fitted, policy.format, policy, (width, height), notes)
    if as_png:
        return _encoded(upright(to_rgb(image), orientation), "png", policy, (width, height), notes)
    return StoredImage(data=data, extension=extension, width=width, height=height, original_size=(width, height))


def _accepted_changes(image: ImageFile, data: bytes, policy: ImagePolicy) -> tuple[str, ...]:
    """What the policy lets change for one frame of 8 bits. Raises ImageError for what it does not."""
    check_depth(image, data, sixteen_bit=policy.sixteen_bit == "scale")
    if policy.frames != "first" and is_animated(image):
        raise ImageError("animated", f"the image has more than one frame; {EVEN_ADVICE}, or frames: first")
    notes = {
        "first_frame": policy.frames == "first" and is_animated(image),
        "scaled_to_8_bits": policy.sixteen_bit == "scale" and is_sixteen_bit(image, data),
    }
    return tuple(name for name, is_so in notes.items() if is_so)


def _encoded(
    image: Image.Image,
    form: Literal["jpeg", "png"],
    policy: ImagePolicy,
    original_size: tuple[int, int],
    notes: tuple[str, ...],
) -> StoredImage:
    image.info = {}  # Pillow would write comments and colour profiles into the new file
    buffer = BytesIO()
    if form == "jpeg":
        image.save(buffer, "JPEG", quality=policy.quality, subsampling=policy.subsampling)
    else:
        image.save(buffer, "PNG")
    extension = "jpg" if form == "jpeg" else "png"
    return StoredImage(
        data=buffer.getvalue(),
        extension=extension,
        width=image.width,
        height=image.height,
        original_size=original_size,
        notes=notes,
    )
