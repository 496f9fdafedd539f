"""The images of lmms-eval's documents, as the compiler would see their files.

Rule: from a Pillow image, the encoder gets the pixels that it would get from a file of it: alpha is dropped, an EXIF
orientation that is still there is applied, and the export's own geometry resizes. Sound, videos and URLs are refused.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, MpoImagePlugin

from shards.errors import ImageError
from shards.images.decode import seen_size
from shards.images.geometry import Geometry
from shards.images.pixels import check_frames, check_size, fenced, read_orientation, to_rgb, upright
from trainer.errors import TrainError
from trainer.inference.images import LoadedImage, load_image, opened_image


def visual_image(visual: object, geometry: Geometry) -> LoadedImage:
    """The image. Raises TrainError for anything that is not one."""
    try:
        match visual:
            case Image.Image():
                return _of_pillow(visual, geometry)
            case {"bytes": bytes(data)}:  # an image of `datasets` that it was not asked to decode
                return opened_image(data, geometry, Path())
            case {"path": str(path)}:
                return _of_path(path, geometry)
            case str() | Path():
                return _of_path(str(visual), geometry)
    except ImageError as error:
        raise TrainError(f"an image cannot be decoded: {error}") from None
    keys = f" with {', '.join(sorted(map(str, visual)))}" if isinstance(visual, Mapping) else ""
    raise TrainError(f"got {type(visual).__name__}{keys}; expected an image: sound and videos are not supported")


def _of_pillow(image: Image.Image, geometry: Geometry) -> LoadedImage:
    check_size(image, geometry.max_pixels)  # before pixels are decoded: it may be a file that was only opened
    if not isinstance(image, MpoImagePlugin.MpoImageFile):  # a phone's photo: the compiler reads the first as well
        check_frames(image)
    if image.mode[0] in "IF":
        raise ImageError("format", "more than 8 bits a channel; convert it to 8 bits first")
    with warnings.catch_warnings(action="ignore"):  # Pillow warns of odd metadata
        fenced(image.load)
        seen = upright(to_rgb(image), read_orientation(image, b""))
    file = io.BytesIO()
    seen.save(file, "BMP")  # keeps every pixel, at the cost of a copy
    data = file.getvalue()
    return LoadedImage(path=Path(), data=data, geometry=geometry, size=seen_size(data, geometry))


def _of_path(path: str, geometry: Geometry) -> LoadedImage:
    if "://" in path:
        raise TrainError(f"got {path[:200]!r}; expected an image or the path of one: URLs are not supported")
    try:
        return load_image(Path(path), geometry)
    except TrainError as error:
        raise TrainError(f"{error}; sound and videos are not supported") from None
