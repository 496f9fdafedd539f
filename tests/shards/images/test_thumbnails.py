"""Small JPEGs for pages."""

from __future__ import annotations

import io

import pytest
from PIL import Image, ImageCms

from shards.images.thumbnails import thumbnail
from tests.support.small_blends import jpeg


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_images_of_every_kind_become_small_jpegs(mode: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (400, 200), "red").convert(mode).save(file, "JPEG" if mode == "CMYK" else "PNG")
    small, width, height = thumbnail(file.getvalue(), 100)
    assert (width, height) == (100, 50)
    with Image.open(io.BytesIO(small)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (100, 50))


def test_a_thumbnail_is_upright_is_never_enlarged_and_holds_no_metadata() -> None:
    orientation = Image.Exif()
    orientation[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    small, width, height = thumbnail(jpeg(1, size=(60, 40), exif=orientation, icc_profile=profile), 512)
    assert (width, height) == (40, 60)
    with Image.open(io.BytesIO(small)) as image:
        assert not image.getexif()
