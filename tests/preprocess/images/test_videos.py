"""Video files: frames by their times, whatever the container, and files that are refused."""

from __future__ import annotations

import contextlib
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from preprocess.conversation import Image
from preprocess.errors import RejectError
from preprocess.images import videos
from preprocess.images.frames import frames_of, read_frame
from preprocess.images.stores import open_stores
from preprocess.images.videos import Video, reader_version, video_format
from shards.errors import ImageError
from tests.support.frame_files import SIZE, animation, number_of, sound, video

MOST = 10**6
KINDS = {
    "mp4": ("mp4", "mpeg4", "mov"),
    "quicktime": ("mov", "mpeg4", "mov"),
    "matroska": ("matroska", "mpeg4", "matroska"),
    "avi": ("avi", "mpeg4", "avi"),
    "transport stream": ("mpegts", "mpeg2video", "mpegts"),
    "flash": ("flv", "flv1", "flv"),
}


@pytest.fixture(scope="module")
def av() -> Any:
    return pytest.importorskip("av", reason="PyAV is not installed")


def refused(data: bytes, max_pixels: int = MOST) -> ImageError:
    with pytest.raises(ImageError) as caught:
        shown_numbers(data, max_pixels)
    return caught.value


def shown_numbers(data: bytes, max_pixels: int = MOST) -> list[int]:
    opened = Video(data, max_pixels)
    return [number_of(opened.frame(index)[0]) for index in range(len(opened))]


@pytest.mark.parametrize("kind", KINDS)
def test_any_frame_of_any_container_is_found_in_any_order(av: Any, kind: str) -> None:
    form, codec, name = KINDS[kind]
    data = video(av, form, codec)
    assert video_format(data) == name
    opened = Video(data, MOST)
    assert len(opened) == 24
    for index in (0, 3, 4, 15, 23, 23, 9, 0):
        frame, time_s, _ = opened.frame(index)
        assert (number_of(frame), frame.size, frame.mode) == (index, SIZE, "RGB")
        assert time_s == pytest.approx(index / 24, abs=0.001)


def test_frames_at_uneven_times_are_found_by_their_times(av: Any) -> None:
    opened = Video(video(av, times=lambda number: number * number), MOST)
    assert [number_of(opened.frame(index)[0]) for index in (0, 7, 23)] == [0, 7, 23]
    assert opened.frame(23)[1] == pytest.approx(23 * 23 / 24, abs=0.001)


IDENTITY, QUARTER = ((1, 0, 0, 0, 1, 0), (0, 1, 0, -1, 0, 0))


def is_dark_at(image: Pillow.Image, place: tuple[int, int]) -> bool:
    return bool(np.asarray(image)[place[1], place[0], 0] < 100)


def test_a_video_that_a_phone_turned_is_upright(av: Any) -> None:
    """The matrix of its track turns it clockwise by a quarter: what is recorded at the left is at the top."""
    matrices = [struct.pack(">6i", *(value << 16 for value in matrix)) for matrix in (IDENTITY, QUARTER)]
    left_dark, *_ = Video(video(av, count=2, split=True), MOST).frame(0)
    assert is_dark_at(left_dark, (2, 12))
    assert not is_dark_at(left_dark, (29, 12))
    head, _, tail = video(av, count=2, split=True).rpartition(matrices[0])
    turned, *_ = Video(head + matrices[1] + tail, MOST).frame(0)
    assert turned.size == SIZE[::-1]
    assert is_dark_at(turned, (12, 2))
    assert not is_dark_at(turned, (12, 29))


def test_a_video_is_evenly_spaced_frames_with_times(av: Any, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(video(av))
    (tmp_path / "one.mp4").write_bytes(video(av, count=1))
    stores = open_stores([tmp_path], tmp_path)
    frames = frames_of(Image(name="a.mp4"), stores, 3, MOST)
    assert [image.frame for image in frames.images] == [0, 11, 23]
    assert [read_frame(image, stores, MOST)[1] for image in frames.images] == pytest.approx(
        [0, 11 / 24, 23 / 24], abs=1e-3
    )
    one = frames_of(Image(name="one.mp4"), stores, 3, MOST)
    assert (one.images, one.notes) == ((Image(name="one.mp4", frame=0),), ("fewer_frames",))


def test_a_sound_file_and_what_is_too_large_are_refused(av: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (refused(sound(av)).reason, refused(sound(av)).detail) == ("unreadable", "the file has no video stream")
    assert refused(video(av, count=2), max_pixels=100).reason == "too_large"
    monkeypatch.setattr(videos, "MOST_FRAMES", 3)
    assert refused(video(av, count=4)).detail == "it has more than 3 frames"
    monkeypatch.setattr(videos, "MOST_DECODED", 1000)
    assert refused(video(av, count=3)).reason == "too_large"


def test_a_file_cut_off_anywhere_is_refused_or_shows_what_it_has(av: Any) -> None:
    for form, codec in (("mp4", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4")):
        data = video(av, form, codec, count=6, key_every=3)
        for length in range(1, len(data), 149):
            with contextlib.suppress(ImageError):
                numbers = shown_numbers(data[:length])
                assert numbers == [*range(len(numbers))]
        assert refused(data[: len(data) // 3]).reason == "unreadable" or form == "matroska"


def test_flipped_bits_never_raise_anything_but_an_image_error(av: Any) -> None:
    generator = random.Random(0)
    for form in ("mp4", "matroska"):
        whole = video(av, form, count=4)
        for _ in range(15):
            data = bytearray(whole)
            for _ in range(3):
                data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            with contextlib.suppress(ImageError):
                shown_numbers(bytes(data))


def test_a_playlist_is_not_a_video() -> None:
    for text in (b"#EXTM3U\n/etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n", b"<?xml?><MPD/>"):
        assert video_format(text) is None


def test_images_are_not_videos() -> None:
    assert [video_format(animation(form, 2)) for form in ("GIF", "PNG", "WEBP", "TIFF", "MPO")] == [None] * 5
    assert video_format(b"\0\0\0\x1cftypavif\0\0\0\0") is None
    assert video_format(b"\0\0\0\x1cftypheic\0\0\0\0") is None


def test_without_the_extra_a_video_is_a_reject_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "find_spec", lambda name: None)
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    with pytest.raises(RejectError) as caught:
        frames_of(Image(name="a.mp4"), open_stores([tmp_path], tmp_path), 4, MOST)
    assert caught.value.reason == "image_format"
    assert "pip install 'dsvl[video]'" in caught.value.detail
    assert reader_version() == ""
