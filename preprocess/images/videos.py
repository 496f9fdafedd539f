"""The frames of a video file, read with PyAV (FFmpeg), which the extra `video` installs.

Rules: the file is bytes from outside. Its format is that of its first bytes and only that demuxer opens it, so a
playlist that names other files is not a video. Size, pixels and number of frames have limits. One thread decodes, and
the conversion to RGB does not depend on the processor, so the same bytes give the same pixels for one version of PyAV.

Frames are those of the first video stream, in the order of their times. Their list comes from the packets, since the
count in a header may be missing or wrong; a frame is found by its time, since frame rates vary.
"""

from __future__ import annotations

import importlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from io import BytesIO
from typing import Any, TypeVar

from PIL import Image

from preprocess.images.animations import ShownFrame
from shards.errors import ImageError

T = TypeVar("T")

PACKAGE = "av"
MOST_FRAMES = 500_000
MOST_PIXELS = 8192 * 4320
"""Of a frame: 8K. A decoder keeps up to 16 of them."""
MOST_DECODED = 1 << 40
"""Pixels of all frames together: five hours of 1080p"""

_ROUNDING = 2 | 1 << 13 | 1 << 18 | 1 << 19  # swscale's bilinear, full_chroma_int, accurate_rnd and bitexact
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}
_STILL = (b"avi", b"mif1", b"msf1", b"he", b"jp", b"crx")  # major brands of images (AVIF, HEIC, JPEG 2000, CR3)
_MARKS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x1aE\xdf\xa3", "matroska"),  # and WebM
    (8, b"AVI ", "avi"),
    (0, b"FLV\1", "flv"),
    (0, b"OggS", "ogg"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "asf"),
    (0, b"\0\0\1\xba", "mpeg"),
    (4, b"moov", "mov"),
    (4, b"mdat", "mov"),
    (4, b"wide", "mov"),
)


def video_format(data: bytes) -> str | None:
    """FFmpeg's name of the format of a video that begins with these bytes; None for anything else."""
    if data[4:8] == b"ftyp":
        return None if data[8:12].startswith(_STILL) else "mov"
    if len(data) > 376 and {data[0], data[188], data[376]} == {0x47}:
        return "mpegts"
    return next((name for offset, mark, name in _MARKS if data.startswith(mark, offset)), None)


def reader_version() -> str:
    """The version of PyAV, which decides the pixels; "" if it is not installed."""
    return metadata.version(PACKAGE) if find_spec(PACKAGE) else ""


class Video:
    """An open video. Raises ImageError for one that cannot be read, MemoryError if memory runs out."""

    def __init__(self, data: bytes, max_pixels: int) -> None:
        if find_spec(PACKAGE) is None:
            raise ImageError("format", "it is a video, which PyAV reads; pip install 'dsvl[video]'")
        self._av = importlib.import_module(PACKAGE)
        self._data, self._max_pixels = data, min(max_pixels, MOST_PIXELS)
        self._format = video_format(data)
        self._container: Any = None
        self._position: int | None = None
        self._frames: Iterator[Any] = iter(())
        self._open()
        self._times, self._keys = _fenced(self._list_frames)
        if not self._times:
            raise ImageError("unreadable", "its video stream has no frame")
        size = self._stream.codec_context
        if len(self._times) * size.width * size.height > MOST_DECODED:
            raise ImageError("too_large", f"its {len(self._times)} frames have more than {MOST_DECODED} pixels")

    def __len__(self) -> int:
        return len(self._times)

    def frame(self, index: int, *, sixteen_bit: bool = False) -> ShownFrame:
        """Reading in ascending order is the fastest. sixteen_bit: a video is always converted to 8 bits a channel."""
        image = _fenced(lambda: self._image(self._times[index]))
        return ShownFrame(image, float((self._times[index] - self._times[0]) * self._stream.time_base))

    def _open(self) -> None:
        """Raises ImageError for a file without a video stream; the cover of a sound file is none."""
        if self._container is not None:
            self._container.close()
        self._container = _fenced(lambda: self._av.open(BytesIO(self._data), format=self._format))
        cover = self._av.stream.Disposition.attached_pic
        stream = next((one for one in self._container.streams.video if not one.disposition & cover), None)
        if stream is None:
            raise ImageError("unreadable", "the file has no video stream")
        if stream.codec_context is None:
            raise ImageError("format", "its codec is not one that PyAV decodes; convert it to H.264 in MP4")
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(self._max_pixels)}
        self._stream: Any = stream
        self._check_size(stream.codec_context)

    def _list_frames(self) -> tuple[list[int], list[int]]:
        """The times of all frames and of the key frames, ascending, in units of the stream."""
        times: list[int] = []
        keys: list[int] = []
        packets = 0
        for packet in self._container.demux(self._stream):
            if not packet.size:  # the last one, which only flushes decoders
                continue
            packets += 1
            if packets > MOST_FRAMES:
                raise ImageError("too_large", f"it has more than {MOST_FRAMES} frames")
            if packet.is_discard:  # cut off by an edit list: decoders drop it
                continue
            time = packet.pts if packet.pts is not None else packet.dts
            if time is None:
                raise ImageError("format", "its frames have no times; convert it to H.264 in MP4")
            times.append(time)
            if packet.is_keyframe:
                keys.append(time)
        if packets < self._stream.frames:
            raise ImageError(
                "unreadable", f"the file is cut off: it has {packets} of the {self._stream.frames} frames that it lists"
            )
        return sorted(times), sorted(keys)

    def _image(self, time: int) -> Image.Image:
        key = self._keys[place - 1] if (place := bisect_right(self._keys, time)) else self._times[0]
        if self._position is None or not (key <= self._position < time):
            self._container.seek(key, stream=self._stream, backward=True)
            self._frames, self._position = self._container.decode(self._stream), None
        frame = self._frame_at(time)
        if frame is None:  # the demuxer cannot seek there: decode from the start
            self._open()
            self._frames, self._position = self._container.decode(self._stream), None
            frame = self._frame_at(time, first_too=True)
        if frame is None:
            raise ImageError("unreadable", f"no frame can be decoded at its time {time} or later")
        self._check_size(frame)
        pixels = frame.reformat(format="rgb24", interpolation=_ROUNDING).to_ndarray()
        image = Image.fromarray(pixels)
        turn = _TURNS.get(round(frame.rotation) % 360)
        return image if turn is None else image.transpose(turn)

    def _frame_at(self, time: int, *, first_too: bool = False) -> Any:
        """The first frame at or after a time; None if there is none, or if the decoder began behind it.

        first_too: take the decoder's first frame even if it is behind it.
        """
        for frame in self._frames:
            shown = frame.pts if frame.pts is not None else frame.dts
            is_first, self._position = self._position is None, shown
            if shown is not None and shown >= time:
                return None if is_first and shown > time and not first_too else frame
        self._position = None
        return None

    def _check_size(self, sized: Any) -> None:
        if sized.width * sized.height > self._max_pixels:
            raise ImageError("too_large", f"{sized.width}x{sized.height} is more than {self._max_pixels} pixels")


def _fenced(call: Callable[[], T]) -> T:
    """FFmpeg on bytes from outside."""
    try:
        return call()
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if "Cannot allocate memory" in text:
            raise MemoryError(text) from None
        raise ImageError("unreadable", f"the video cannot be decoded: {text}") from None
