"""Reading ahead: whatever is asked for, the bytes are those of a plain read, and few are in memory."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.conversation import Image
from preprocess.images.read_ahead import AHEAD, ReadAhead


def image(number: int) -> Image:
    return Image(name=f"{number}.jpg")


class Recorder:
    def __init__(self) -> None:
        self.read: list[str] = []
        self.lock = threading.Lock()

    def __call__(self, wanted: Image) -> bytes:
        with self.lock:
            self.read.append(wanted.name)
        return wanted.name.encode()


@given(
    foreseen=st.lists(st.integers(0, 60), max_size=80),
    asked=st.lists(st.integers(0, 80), max_size=80),
)
def test_any_order_of_questions_gives_the_bytes_of_each_image(foreseen: list[int], asked: list[int]) -> None:
    recorder = Recorder()
    ahead = ReadAhead(recorder, map(image, foreseen))
    try:
        for number in asked:
            assert ahead(image(number)) == f"{number}.jpg".encode()
            assert len(ahead._waiting) <= AHEAD
    finally:
        ahead.close()


def test_images_in_their_order_are_read_once_each() -> None:
    recorder = Recorder()
    ahead = ReadAhead(recorder, map(image, range(100)))
    for number in range(100):
        ahead(image(number))
    ahead.close()
    assert sorted(recorder.read) == sorted(f"{number}.jpg" for number in range(100))


def test_images_that_nobody_asks_for_do_not_stop_reading_ahead() -> None:
    recorder = Recorder()
    ahead = ReadAhead(recorder, map(image, range(200)))
    for number in (0, 100, *range(150, 200)):
        ahead(image(number))
    ahead.close()
    assert len(recorder.read) < 52 + 3 * AHEAD
    assert len(set(recorder.read)) == len(recorder.read)


def test_an_error_comes_when_its_image_is_asked_for() -> None:
    def read(wanted: Image) -> bytes:
        if wanted.name == "3.jpg":
            raise OSError(5, "Input/output error")
        return b""

    ahead = ReadAhead(read, map(image, range(5)))
    for number in range(3):
        ahead(image(number))
    with pytest.raises(OSError, match="Input/output error"):
        ahead(image(3))
    ahead.close()
