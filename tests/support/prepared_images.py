"""Images for tests of their checks: a photo in every supported format, and how the checks refuse one."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from preprocess.conversation import REASONS
from preprocess.errors import RejectError
from preprocess.images.prepare import ImagePolicy, prepare_image
from tests.support.paths import EXAMPLES

DECODE, HEADER = ImagePolicy(), ImagePolicy(check="header")
RESIZED = ImagePolicy(store="resized", size=64)
ALL = (DECODE, HEADER, RESIZED)


def photo() -> Image.Image:
    with Image.open(EXAMPLES / "coco" / "train2017" / "000000000112.jpg") as image:
        return image.convert("RGB").resize((90, 60))


def reason(data: bytes, policy: ImagePolicy = DECODE) -> str:
    with pytest.raises(RejectError) as caught:
        prepare_image(data, policy)
    assert caught.value.reason in REASONS
    assert caught.value.detail
    return caught.value.reason


KINDS: dict[str, tuple[Image.Image, str, dict[str, Any], str]] = {
    "jpeg": (photo(), "JPEG", {}, "jpg"),
    "progressive jpeg": (photo(), "JPEG", {"progressive": True}, "jpg"),
    "gray jpeg": (photo().convert("L"), "JPEG", {}, "jpg"),
    "CMYK jpeg": (photo().convert("CMYK"), "JPEG", {}, "jpg"),
    "png": (photo(), "PNG", {}, "png"),
    "gray png": (photo().convert("L"), "PNG", {}, "png"),
    "gray alpha png": (photo().convert("LA"), "PNG", {}, "png"),
    "alpha png": (photo().convert("RGBA"), "PNG", {}, "png"),
    "palette png": (photo().convert("P"), "PNG", {}, "png"),
    "palette png with alpha": (photo().convert("P"), "PNG", {"transparency": bytes(range(256))}, "png"),
    "1-bit png": (photo().convert("1"), "PNG", {}, "png"),
    "gif": (photo().convert("P"), "GIF", {}, "gif"),
    "transparent gif": (photo().convert("P"), "GIF", {"transparency": 3}, "gif"),
    "webp": (photo(), "WEBP", {}, "webp"),
    "lossless alpha webp": (photo().convert("RGBA"), "WEBP", {"lossless": True}, "webp"),
    "bmp": (photo(), "BMP", {}, "bmp"),
    "phone's jpeg": (photo(), "MPO", {"save_all": True, "append_images": [photo()]}, "jpg"),
}
