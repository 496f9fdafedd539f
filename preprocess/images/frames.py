"""`frames: even:N`: an animation, a video or a folder of frames as N images.

    clip.mp4, of 100 frames         even:3    frames 0, 49 and 99 of clip.mp4
    clip, a folder of 100 images    even:3    clip/1.jpg, clip/50.jpg, clip/100.jpg

Rule: a still image stays what it is. `preprocess.containers.even_places` has the spacing. The frames of a folder are
its image files in natural order, where numbers compare as numbers: img_2.jpg is before img_10.jpg. A frame of a file
is found again by its number (`read_frame`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache

from preprocess.containers.even_places import even_places
from preprocess.conversation import Image
from preprocess.errors import RejectError
from preprocess.images.animations import Animation, ShownFrame
from preprocess.images.prepare import refusal
from preprocess.images.stores import StoreList
from preprocess.images.videos import Video, video_format
from shards.errors import ImageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """What is shown of a reference. notes: what was changed, as names of NOTES."""

    images: tuple[Image, ...]
    notes: tuple[str, ...] = ()


def frames_of(image: Image, stores: StoreList, count: int, max_pixels: int) -> Frames:
    """The images to show for a reference, at most `count`.

    Raises RejectError for what cannot be read as any of them, OSError if another try may succeed, or MemoryError.
    """
    if names := stores.names_below(image):
        files = tuple(Image(name=names[place], store=image.store) for place in even_places(len(names), count))
        return Frames(images=files, notes=_notes(len(names), count))
    opened = _opened(image, stores, max_pixels)
    if len(opened) == 1 and isinstance(opened, Animation):
        return Frames(images=(image,))
    numbers = even_places(len(opened), count)
    chosen = tuple(Image(name=image.name, store=image.store, frame=number) for number in numbers)
    return Frames(images=chosen, notes=_notes(len(opened), count))


def read_frame(image: Image, stores: StoreList, max_pixels: int, *, sixteen_bit: bool = False) -> ShownFrame:
    """The frame of a reference with a number.

    Raises RejectError, OSError if another try may succeed, or MemoryError.
    """
    assert image.frame is not None
    opened = _opened(image, stores, max_pixels)
    if image.frame >= len(opened):
        raise RejectError("image_unreadable", f"it has {len(opened)} frames, and had more when they were chosen")
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow warns of odd metadata; the pixels decide here
            return opened.frame(image.frame, sixteen_bit=sixteen_bit)
    except ImageError as error:
        raise RejectError(f"image_{error.reason}", f"frame {image.frame}: {error.detail}") from None


def _opened(image: Image, stores: StoreList, max_pixels: int) -> Animation | Video:
    """The frames of one file follow each other in a sample, so the last file stays open."""
    return _open(stores, image.name, image.store, max_pixels)


@lru_cache(maxsize=1)
def _open(stores: StoreList, name: str, store: int | None, max_pixels: int) -> Animation | Video:
    data = stores.read(Image(name=name, store=store))
    kind = Video if video_format(data) else Animation
    try:
        with warnings.catch_warnings(action="ignore"):
            return kind(data, max_pixels)
    except ImageError as error:
        raise refusal(error, data) from None


def _notes(total: int, count: int) -> tuple[str, ...]:
    if total == count:
        return ()
    return ("frames_cut",) if total > count else ("fewer_frames",)
