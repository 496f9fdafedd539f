"""Animations and folders as evenly spaced frames. Videos are in test_videos.py."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from preprocess.containers.even_places import even_places
from preprocess.conversation import NOTES, Image
from preprocess.errors import RejectError
from preprocess.images.animations import ShownFrame
from preprocess.images.frames import frames_of, read_frame
from preprocess.images.prepare import ImagePolicy, even_count, prepare_frame
from preprocess.images.stores import StoreList, open_stores, prepare_store
from preprocess.views.preview_images import PreviewImages
from shards.images.formats import reads_avif
from tests.support.frame_files import SIZE, animation, encoded, grey, number_of
from tests.support.image_archives import as_deflated_zip, as_folder, as_tar, as_zip

MOST = 10**6


def stores_with(folder: Path, files: dict[str, bytes], save: Callable[..., None] = as_folder) -> StoreList:
    path = folder / "store"
    if save is as_folder:
        path.mkdir()
    save(path, files)
    prepare_store(path, folder / "cache")
    return open_stores([path], folder / "cache")


def shown(stores: StoreList, name: str, count: int) -> list[tuple[str, int | None]]:
    return [(image.name, image.frame) for image in frames_of(Image(name=name), stores, count, MOST).images]


def test_places_are_evenly_spaced_with_the_first_and_the_last() -> None:
    for total in range(1, 60):
        for count in range(1, 20):
            expected = list(range(total))
            if count < total:
                expected = [int(Fraction(total - 1, max(count - 1, 1)) * place) for place in range(count)]
            assert even_places(total, count) == expected
    assert even_places(5401, 32) == np.linspace(0, 5400, 32, dtype=int).tolist()


def test_the_setting_says_how_many() -> None:
    assert [even_count(frames) for frames in ("reject", "first", "even:1", "even:16")] == [0, 0, 1, 16]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "AVIF", "TIFF", "MPO"])
def test_an_animation_gives_evenly_spaced_frames_of_itself(form: str, tmp_path: Path) -> None:
    if form == "AVIF" and not reads_avif():
        pytest.skip("this Pillow does not read AVIF")
    stores = stores_with(tmp_path, {"a": animation(form, 7), "still": animation("PNG", 1)})
    frames = frames_of(Image(name="a"), stores, 4, MOST)
    assert frames.images == tuple(Image(name="a", frame=number) for number in (0, 2, 4, 6))
    assert frames.notes == ("frames_cut",)
    for image in (*frames.images, *frames.images[::-1]):
        frame, time_s, notes = read_frame(image, stores, MOST)
        assert (number_of(frame), frame.size, frame.mode, time_s, notes) == (image.frame, SIZE, "RGB", None, ())
    few = frames_of(Image(name="a"), stores, 9, MOST)
    assert (len(few.images), few.notes) == (7, ("fewer_frames",))
    assert frames_of(Image(name="a"), stores, 7, MOST).notes == ()
    still = frames_of(Image(name="still"), stores, 4, MOST)
    assert (still.images, still.notes) == ((Image(name="still"),), ())
    assert {"frames_cut", "fewer_frames"} <= NOTES.keys()


def test_a_gain_map_or_a_view_that_was_cut_off_is_not_a_frame(tmp_path: Path) -> None:
    phone = encoded(grey(3), "MPO", save_all=True, append_images=[grey(4, (16, 12))])
    whole = animation("MPO", 2)
    stores = stores_with(tmp_path, {"phone.jpg": phone, "cut.jpg": whole[: len(whole) // 2 + 90]})
    assert shown(stores, "phone.jpg", 4) == [("phone.jpg", None)]
    assert shown(stores, "cut.jpg", 4) == [("cut.jpg", None)]


NAMES = ["v/img_2.png", "v/img_10.png", "v/img_1.png", "v/.hidden.png", "v/notes.txt", "v/below/img_0.png", "va.png"]


@pytest.mark.parametrize("save", [as_folder, as_zip, as_deflated_zip, as_tar])
def test_a_folder_of_frames_is_in_natural_order(save: Callable[..., None], tmp_path: Path) -> None:
    stores = stores_with(tmp_path, dict.fromkeys(NAMES, animation("PNG", 1)), save)
    assert shown(stores, "v", 8) == [(f"v/img_{number}.png", None) for number in (1, 2, 10)]
    assert shown(stores, "v", 2) == [("v/img_1.png", None), ("v/img_10.png", None)]
    assert frames_of(Image(name="v"), stores, 8, MOST).notes == ("fewer_frames",)
    assert shown(stores, "va.png", 8) == [("va.png", None)]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent", "image_missing"),
        ("empty", "image_unreadable"),
        ("../store", "image_path"),
        ("/etc", "image_path"),
        ("text", "image_unreadable"),
        ("pointer.mp4", "image_unreadable"),
        ("cut.gif", "image_unreadable"),
        ("large.gif", "image_too_large"),
    ],
)
def test_what_is_not_frames_is_refused_with_its_reason(name: str, reason: str, tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + bytes(64)
    files = {
        "text": b"hello",
        "pointer.mp4": pointer,
        "cut.gif": animation("GIF", 5)[:-40],
        "large.gif": animation("GIF", 2),
    }
    stores = stores_with(tmp_path, files)
    (tmp_path / "store/empty").mkdir()
    limit = 100 if name == "large.gif" else MOST
    with pytest.raises(RejectError) as caught:
        [read_frame(image, stores, limit) for image in frames_of(Image(name=name), stores, 4, limit).images]
    assert caught.value.reason == reason


def test_a_frame_that_is_gone_is_refused(tmp_path: Path) -> None:
    stores = stores_with(tmp_path, {"a.gif": animation("GIF", 2)})
    with pytest.raises(RejectError, match="it has 2 frames"):
        read_frame(Image(name="a.gif", frame=2), stores, MOST)


@pytest.mark.parametrize("store", ["original", "resized"])
def test_a_frame_is_stored_as_an_image_of_its_own(store: Any) -> None:
    frame = ShownFrame(grey(7), 1.5, ("scaled_to_8_bits",))
    stored = prepare_frame(frame, ImagePolicy(store=store, size=16))
    assert (stored.extension, stored.time_s) == ("png" if store == "original" else "jpg", 1.5)
    assert stored.notes == frame.notes
    assert stored.original_size == SIZE
    with Pillow.open(io.BytesIO(stored.data)) as image:
        assert (number_of(image), image.size) == (7, SIZE if store == "original" else (16, 16))
    assert prepare_frame(frame, ImagePolicy(store=store, size=16)) == stored
    with pytest.raises(RejectError, match="expected sides of at least 30"):
        prepare_frame(frame, ImagePolicy(store=store, min_side=30))


def test_pages_of_16_bits_are_refused_or_scaled_with_a_note(tmp_path: Path) -> None:
    pages = [Pillow.fromarray(np.full((24, 32), number << 8, np.uint16)) for number in (10, 20)]
    stores = stores_with(tmp_path, {"a.tiff": encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])})
    page = frames_of(Image(name="a.tiff"), stores, 2, MOST).images[1]
    with pytest.raises(RejectError, match="more than 8 bits"):
        read_frame(page, stores, MOST)
    frame = read_frame(page, stores, MOST, sixteen_bit=True)
    assert (number_of(frame.image), frame.notes) == (2, ("scaled_to_8_bits",))


def test_a_preview_lists_frames(tmp_path: Path) -> None:
    as_folder(tmp_path, {"a.gif": animation("GIF", 9), "v/2.png": animation("PNG", 1), "still.png": encoded(grey(1))})
    images = PreviewImages([tmp_path], "", tmp_path / "cache", frames=3)
    lines = [images.line(Image(name=name)).text for name in ("a.gif", "v", "still.png")]
    assert lines == ["shown as frame 0, frame 4, frame 8", "shown as v/2.png", "32x24 png"]
