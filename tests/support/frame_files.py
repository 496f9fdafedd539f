"""Animations and videos whose frames are plain greys: frame number i has the value 10 i."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

SIZE = (32, 24)


def grey(number: int, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.new("RGB", size, (10 * number,) * 3)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def number_of(image: Image.Image) -> int:
    """Which frame it shows. Codecs change a grey by a few levels."""
    return round(float(np.asarray(image.convert("L")).mean()) / 10)


def animation(form: str, count: int, **options: Any) -> bytes:
    frames = [grey(number) for number in range(count)]
    if (
        form == "MPO"
    ):  # Pillow's list of more than two is wrong; cameras' lists are complete, and nobody here reads them
        more = b"".join(encoded(frame, "JPEG") for frame in frames[2:])
        return encoded(frames[0], form, save_all=True, append_images=frames[1:2]) + more
    if form == "WEBP":
        options = {"lossless": True, **options}
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)


def video(
    av: Any,
    form: str = "mp4",
    codec: str = "mpeg4",
    count: int = 24,
    *,
    times: Any = None,
    size: tuple[int, int] = SIZE,
    key_every: int = 8,
    split: bool = False,
) -> bytes:
    """A tiny video. av: the module. times: number of a frame -> its time in 24ths of a second.

    split: the left half is black and the right half white instead.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", key_every
        for number in range(count):
            pixels = np.asarray(grey(number, size)).copy()
            if split:
                pixels[:] = np.where(np.arange(size[0]) < size[0] // 2, 0, 255)[None, :, None]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts = times(number)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def sound(av: Any) -> bytes:
    """A file of the same format as a video's, with a sound alone."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
