"""Bad images through a whole build: each is a reject of its own record, and the good ones come out unchanged."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.bad_input import PHOTO, Bad, check, samples_of
from tests.support.small_blends import (
    chat_record,
    jpeg,
    write_images,
)

pytestmark = pytest.mark.usefixtures("no_hang")


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG chunk by chunk, since Pillow writes no 16-bit colour."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def frames(form: str) -> bytes:
    shades = [Image.new("RGB", (20, 20), (shade, 0, 255 - shade)) for shade in (0, 120, 240)]
    return encoded(shades[0], form, save_all=True, append_images=shades[1:])


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(7, (40, 24), exif=exif)


COLOURS = Image.open(io.BytesIO(jpeg(1, (40, 30))))

# name: (bytes, reason when decoded, reason when only the header is read)
BAD_IMAGES: dict[str, tuple[bytes, str, str]] = {
    **{
        f"cut-at-{cut}": (PHOTO[:cut], "image_unreadable", "image_unreadable" if cut < 100 else "")
        for cut in (2, 21, len(PHOTO) // 3, len(PHOTO) // 2, len(PHOTO) - 20, len(PHOTO) - 2)
    },
    "cut-png": (encoded(COLOURS, "PNG")[:-30], "image_unreadable", ""),
    "cut-webp": (encoded(COLOURS, "WEBP")[:-9], "image_unreadable", "image_unreadable"),
    "empty": (b"", "image_unreadable", "image_unreadable"),
    "text": (b"This is no picture.\n", "image_unreadable", "image_unreadable"),
    "html": (b"<!DOCTYPE html><html>404 Not Found</html>", "image_unreadable", "image_unreadable"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image_format", "image_format"),
    "cut-tiff": (encoded(COLOURS, "TIFF")[:-30], "image_unreadable", "image_unreadable"),
    "photoshop": (b"8BPS" + bytes(100), "image_format", "image_format"),
    "magic-only": (b"\xff\xd8\xff", "image_unreadable", "image_unreadable"),
    "zeros": (bytes(5000), "image_unreadable", "image_unreadable"),
    "one-pixel": (jpeg(2, (1, 1)), "image_too_small", "image_too_small"),
    "gray-16": (png(9, 9, 16, 0, bytes(19 * 9)), "image_format", "image_format"),
    "rgb-16": (png(9, 9, 16, 2, bytes(55 * 9)), "image_format", "image_format"),
    "huge": (png(20000, 10000, 1, 0, bytes(2501 * 10000)), "image_too_large", "image_too_large"),
    "gif-frames": (frames("GIF"), "image_animated", "image_animated"),
    "webp-frames": (frames("WEBP"), "image_animated", "image_animated"),
    "png-frames": (frames("PNG"), "image_animated", "image_animated"),
}
GOOD_IMAGES: dict[str, tuple[bytes, tuple[int, int]]] = {
    "photo": (PHOTO, Image.open(io.BytesIO(PHOTO)).size),
    "cmyk": (encoded(COLOURS.convert("CMYK"), "JPEG"), (40, 30)),
    "gray": (encoded(COLOURS.convert("L"), "JPEG"), (40, 30)),
    "palette": (encoded(COLOURS.convert("P"), "PNG", transparency=bytes(range(256))), (40, 30)),
    "turned": (turned(), (24, 40)),
    "tiff": (encoded(COLOURS, "TIFF"), (40, 30)),
    "still-gif": (encoded(COLOURS.convert("P"), "GIF"), (40, 30)),
}


@pytest.mark.parametrize(
    ("store", "policy"), [("original", "decode"), ("original", "header"), ("resized", "decode"), ("resized", "header")]
)
def test_every_bad_image_is_a_reject_of_its_own_record(tmp_path: Path, store: str, policy: str) -> None:
    decoded = store == "resized" or policy == "decode"
    root = tmp_path / "mine"
    root.mkdir()
    good, bad = [], []
    for name, (data, *reasons) in BAD_IMAGES.items():
        (root / f"{name}.jpg").write_bytes(data)
        reason = reasons[0 if decoded else 1]
        record = {**chat_record(0, images=[f"{name}.jpg"]), "id": name}
        if reason:
            bad.append(Bad(record, reason, detail=f"{name}.jpg"))
        else:
            good.append(record)
    for name, (data, _) in GOOD_IMAGES.items():
        (root / f"{name}.jpg").write_bytes(data)
        good.append({**chat_record(1, images=[f"{name}.jpg", "photo.jpg"], rounds=2), "id": name})
    check(tmp_path, good, bad, image={"store": store, "check": policy, "size": 32})
    for (_, name), (*_, metadata) in samples_of(tmp_path / "build").items():
        if (identity := name.removeprefix("chat/")) in GOOD_IMAGES:
            size = (32, 32) if store == "resized" else GOOD_IMAGES[identity][1]
            assert (metadata["images"][0]["width"], metadata["images"][0]["height"]) == size


def test_a_path_that_is_not_an_image_of_the_dataset_is_a_reject_and_never_followed(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    names = write_images(root, 4)
    (tmp_path / "outside.jpg").write_bytes(jpeg(50))
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe.jpg")
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "dangling.jpg").symlink_to("nowhere.jpg")
    (root / "device.jpg").symlink_to("/dev/zero")
    paths = {
        "nowhere.jpg": "image_missing",
        "0.JPG": "image_missing",
        "0.jpg/1.jpg": "image_missing",
        "dangling.jpg": "image_missing",
        "folder": "image_unreadable",
        "pipe.jpg": "image_unreadable",
        "device.jpg": "image_unreadable",
        "loop.jpg": "image_unreadable",
        "../outside.jpg": "image_path",
        "folder/../../outside.jpg": "image_path",
        "folder/..": "image_path",
        ".": "image_path",
        "": "image_path",
        str(tmp_path / "outside.jpg"): "image_path",
        "//server/share.jpg": "image_path",
        "C:\\pictures\\0.jpg": "image_path",
        "folder\\0.jpg": "image_missing",
        "0\0.jpg": "image_path",
        "n" * 5000 + ".jpg": "image_path",
        "n" * 300 + ".jpg": "image_path",
        "https://example.org/0.jpg": "image_missing",
        "file:///etc/passwd": "image_path",
    }
    bad = [
        Bad(
            {**chat_record(0, images=[path]), "id": f"bad {number}"},
            reason,
            detail=path.strip("./")[:20].split("\0")[0].split("\\")[0],
        )
        for number, (path, reason) in enumerate(paths.items())
    ]
    check(tmp_path, [chat_record(number, images=[name]) for number, name in enumerate(names)], bad)
