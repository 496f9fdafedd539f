"""What a preview says about an image: its size, or why a build rejects the record, with the places that were searched.

Rule: a look at a few records stays cheap. Folders and zips are read where they are. Any other archive has no list of
its members, so one of more than MAX_INDEXED_BYTES is not opened, and the line says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocess.conversation import Image, is_embedded, is_url
from preprocess.errors import DataError, RejectError
from preprocess.images.frames import frames_of
from preprocess.images.prepare import ImagePolicy, prepare_image
from preprocess.images.stores import ImageStore, StoreList, open_store, prepare_store

MAX_INDEXED_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class ImageLine:
    """What is known of an image. reason: a name of REASONS if a build rejects the record for it, else ""."""

    text: str
    reason: str = ""


class PreviewImages:
    """The image stores of a dataset, each opened when the first image is looked for in it."""

    def __init__(self, stores: Sequence[Path], expected: str, cache: Path, frames: int = 0) -> None:
        """expected: where images should be, for a dataset without a store. cache: a folder for indexes of archives.

        frames: N of `frames: even:N`, or 0.
        """
        self._paths, self._expected, self._cache, self._frames = tuple(stores), expected, cache, frames
        self._opened: dict[Path, ImageStore] = {}

    def line(self, image: Image) -> ImageLine:
        """The image's size and format as a build reads it, or why it cannot be read."""
        if is_embedded(image.name):
            return ImageLine("inside the record, as text")
        paths = self._paths if image.store is None else (self._paths[image.store],)
        if not paths and not is_url(image.name):
            return ImageLine(f"nothing to look in: {self._expected}", "image_missing")
        try:
            unread = [path for path in paths if _is_expensive(path)]
            stores = StoreList([self._store(path) for path in paths if path not in unread])
            image, policy = Image(name=image.name), ImagePolicy()
            if self._frames and (frames := frames_of(image, stores, self._frames, policy.max_pixels).images) != (
                image,
            ):
                return ImageLine(f"shown as {', '.join(map(_frame, frames))}")
            found = prepare_image(stores.read(image), policy)
        except RejectError as error:
            if error.reason == "image_missing" and unread:
                sizes = ", ".join(f"{path} ({path.stat().st_size / 1e9:.1f} GB)" for path in unread)
                return ImageLine(f"not found elsewhere; not looked for in {sizes}, which only a build reads")
            return ImageLine(error.detail, error.reason)
        except DataError as error:
            return ImageLine(str(error), "image_unreadable")
        except OSError as error:
            return ImageLine(f"cannot be read now: {error.filename}: {error.strerror}", "image_unreadable")
        return ImageLine(f"{found.width}x{found.height} {found.extension}")

    def data(self, name: str) -> bytes:
        """The bytes of an image by its name. Raises RejectError or DataError as a build would, OSError."""
        stores = [path for path in self._paths if not _is_expensive(path)]
        return StoreList([self._store(path) for path in stores]).read(Image(name=name))

    def _store(self, path: Path) -> ImageStore:
        if path not in self._opened:
            prepare_store(path, self._cache)
            self._opened[path] = open_store(path, self._cache)
        return self._opened[path]


def _frame(image: Image) -> str:
    return image.name if image.frame is None else f"frame {image.frame}"


def _is_expensive(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() != ".zip" and path.stat().st_size > MAX_INDEXED_BYTES
