"""Small JPEGs of images, for pages that people look at."""

from __future__ import annotations

import io
import warnings

from shards.images.pixels import check_kind, check_size, load_pixels, open_image, read_orientation, to_rgb, upright

_JPEG_QUALITY = 80
_MAX_PIXELS = 200_000_000  # decoding a small file must not take unlimited memory

_SIDES = ((150, 512), (500, 320), (1500, 192))
_SMALLEST = 112


def side_for(num_images: int) -> int:
    """The longest side that this many images on one page may have. Photos then take less than about 20 MB."""
    return next((side for most, side in _SIDES if num_images <= most), _SMALLEST)


def thumbnail(data: bytes, side: int) -> tuple[bytes, int, int]:
    """A JPEG of at most side x side pixels, its width and height. Upright and without alpha, as for the model.

    Raises shards.images.pixels.ImageError for images that the model cannot be shown either.
    """
    with warnings.catch_warnings(action="ignore"):
        original, _ = open_image(data)
        check_size(original, _MAX_PIXELS)
        check_kind(original, data)
        load_pixels(original, data)
        image = upright(to_rgb(original), read_orientation(original, data))
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return out.getvalue(), *image.size
