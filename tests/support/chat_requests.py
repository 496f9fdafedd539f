"""Bodies of chat completions, and images in them."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Mapping
from typing import Any

from PIL import Image

MODEL = "tiny"


def chat_body(**fields: Any) -> dict[str, Any]:
    """A question, with other fields or values."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "What is this?"}], **fields}


def encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()


def image_bytes(number: int = 0, size: tuple[int, int] = (50, 41), form: str = "PNG") -> bytes:
    """An image file whose colour depends on the number."""
    file = io.BytesIO()
    Image.new("RGB", size, (37 * number % 256, 90, 255 - 53 * number % 256)).save(file, form)
    return file.getvalue()


def data_uri(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def image_part(url: str | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url or data_uri(image_bytes()), **more}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def png_header(width: int, height: int) -> bytes:
    """A small PNG file that claims a size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + name + content + zlib.crc32(name + content).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
