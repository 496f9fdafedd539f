"""The frames of an image file: an animated GIF, WebP, PNG or AVIF, the pages of a TIFF, the images of an MPO.

Rule: a frame is what a viewer shows at that time, with all that earlier frames left on the canvas. The images of an MPO
are its frames if they have the size of the first: thumbnails and gain maps of phones are smaller.
"""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image, JpegImagePlugin

from preprocess.images.mpo import jpeg_files
from shards.errors import ImageError
from shards.images.pixels import (
    check_depth,
    check_size,
    fenced,
    is_animated,
    is_sixteen_bit,
    load_pixels,
    open_image,
    read_orientation,
    to_rgb,
    upright,
)

MOST_FRAMES = 1 << 16


class ShownFrame(NamedTuple):
    """An upright RGB frame. time_s: in a video, seconds from the first frame. notes: as of StoredImage."""

    image: Image.Image
    time_s: float | None = None
    notes: tuple[str, ...] = ()


class Animation:
    """An open image file. Raises ImageError for what is not one. A still image has one frame."""

    def __init__(self, data: bytes, max_pixels: int) -> None:
        self._data, self._max_pixels = data, max_pixels
        self._image, _ = open_image(data)
        check_size(self._image, max_pixels)
        self._views = _views(data, self._image.size) if _is_mpo(self._image) else []
        self._count = len(self._views) or 1
        if is_animated(self._image):
            self._count = int(fenced(lambda: getattr(self._image, "n_frames", 1)))
        if self._count > MOST_FRAMES:
            raise ImageError("too_large", f"it has {self._count} frames; at most {MOST_FRAMES} are read")

    def __len__(self) -> int:
        return self._count

    def frame(self, index: int, *, sixteen_bit: bool = False) -> ShownFrame:
        """Reading in ascending order is the fastest. sixteen_bit: whether 16 bits a channel are scaled to 8."""
        data = self._data
        if self._views:
            data = self._views[index]
            self._image, _ = open_image(data)
        else:
            if index < self._image.tell():  # Pillow does not rewind every file (APNG)
                self._image, _ = open_image(data)
            fenced(lambda: self._image.seek(index))
        check_size(self._image, self._max_pixels)  # the pages of a TIFF differ
        check_depth(self._image, data, sixteen_bit=sixteen_bit)
        load_pixels(self._image, data)
        shown = to_rgb(self._image)
        if shown is self._image:  # the next frame is drawn over its pixels
            shown = shown.copy()
        notes = ("scaled_to_8_bits",) if is_sixteen_bit(self._image, data) else ()
        return ShownFrame(upright(shown, read_orientation(self._image, data)), notes=notes)


def _is_mpo(image: Image.Image) -> bool:
    return isinstance(image, JpegImagePlugin.JpegImageFile) and "mp" in image.info


def _views(data: bytes, size: tuple[int, int]) -> list[bytes]:
    """The images of an MPO that have the size of the first; empty if there is one."""
    files = [file for file in jpeg_files(data) if _size(file) == size]
    return files if len(files) > 1 else []


def _size(data: bytes) -> tuple[int, int] | None:
    try:
        return open_image(data)[0].size
    except ImageError:
        return None
