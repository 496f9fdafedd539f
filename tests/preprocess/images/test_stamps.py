"""Stamps of many images at once are those of each image alone, in every kind of store and however slow calls are."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from preprocess.conversation import Image
from preprocess.errors import RejectError
from preprocess.images import stamps
from preprocess.images.reading import MAX_NAME_CHARACTERS, check_name
from preprocess.images.stamps import FAULT, MISSING, plain_paths
from preprocess.images.stores import FolderStore, ImageStore, StoreList
from tests.support.fetched import fetched_images
from tests.support.image_archives import KINDS, as_folder, as_zip, failing, opened

ODD = ["", "..", "../a.jpg", "/etc/passwd", "c:a", "a/../b", "x" * 5000, "a\\b.jpg", "\ud800.jpg", "line\n/b", "absent"]


def one_by_one(store: ImageStore, names: Sequence[str]) -> list[tuple[int, int] | str]:
    """The slow twin: for each name its stamp, or the reason why there is none."""
    return [stamp_or_reason(partial(store.stamp, name)) for name in names]


def stamp_or_reason(ask: Callable[[], tuple[int, int]]) -> tuple[int, int] | str:
    try:
        return ask()
    except RejectError as error:
        return error.reason


def assert_same(store: ImageStore, names: Sequence[str]) -> None:
    together = store.stamps(names)
    for name, (size, mtime), expected in zip(names, together.tolist(), one_by_one(store, names), strict=True):
        if isinstance(expected, str):
            assert size == (MISSING if expected == "image_missing" else FAULT), name
        else:
            assert (size, mtime) == expected, name


@pytest.mark.parametrize("kind", KINDS)
def test_stamps_of_many_images_are_those_of_each(kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
    KINDS[kind](tmp_path / kind, files)
    store = opened(tmp_path / kind)
    assert_same(store, list(files) * 2)
    assert_same(store, [*ODD, *files])
    assert_same(store, ["absent.jpg", *files, "zzz"])
    assert_same(store, [])


def test_stamps_of_links_folders_and_pipes_are_those_of_each(tmp_path: Path) -> None:
    as_folder(tmp_path / "f", {"a.jpg": b"aa", "below/b.jpg": b"b"})
    (tmp_path / "f/link.jpg").symlink_to(tmp_path / "f/a.jpg")
    (tmp_path / "f/circle").symlink_to(tmp_path / "f/circle")
    (tmp_path / "f/dead").symlink_to(tmp_path / "f/nothing")
    os.mkfifo(tmp_path / "f/pipe")
    names = ["a.jpg", "below", "below/b.jpg", "a.jpg/b", "link.jpg", "circle", "dead", "pipe", "A.JPG", "y" * 300]
    assert plain_paths(names)
    assert_same(FolderStore(tmp_path / "f"), names)


def test_stamps_of_urls_are_those_of_the_downloaded_files(tmp_path: Path) -> None:
    urls = [f"https://example.org/{number}.jpg" for number in range(3)]
    fetched_images(tmp_path / "fetched", dict.fromkeys(urls[:2], b"image"))
    assert_same(opened(tmp_path / "fetched"), urls)


def test_calls_that_wait_run_in_threads_and_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{number}.jpg": b"x" * (number + 1) for number in range(20)}
    as_folder(tmp_path / "f", files)
    monkeypatch.setattr(stamps, "_CALLS", 3)
    monkeypatch.setattr(stamps, "_SLOW_CALL_S", 0.0)
    assert_same(FolderStore(tmp_path / "f"), [*files, "absent"])


@pytest.mark.parametrize("slow_call_s", [0.0, 1.0])
def test_a_disk_error_is_an_error_and_not_a_missing_image(
    slow_call_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_folder(tmp_path / "f", {f"{number}.jpg": b"x" for number in range(9)})
    monkeypatch.setattr(stamps, "_CALLS", 3)
    monkeypatch.setattr(stamps, "_SLOW_CALL_S", slow_call_s)
    store, real = FolderStore(tmp_path / "f"), os.stat
    broken = str(tmp_path / "f/7.jpg")
    fail = failing(errno.EIO)
    monkeypatch.setattr(os, "stat", lambda path, **rest: fail() if "7.jpg" in str(path) else real(path, **rest))
    with pytest.raises(OSError, match=re.escape(broken)):
        store.stamps([f"{number}.jpg" for number in range(9)])


def test_an_image_has_the_stamp_of_the_first_store_that_has_it(tmp_path: Path) -> None:
    as_folder(tmp_path / "one", {"a.jpg": b"a", "both.jpg": b"one"})
    as_zip(tmp_path / "two.zip", {"b.jpg": b"b", "both.jpg": b"two"})
    url = "https://example.org/1.jpg"
    fetched_images(tmp_path / "fetched", {url: b"image"})
    stores = StoreList([opened(tmp_path / name) for name in ("one", "two.zip", "fetched")])
    images = [
        Image(name=name, store=store)
        for name in ("a.jpg", "b.jpg", "both.jpg", "absent", url, "../a", "data:0")
        for store in (None, 0, 1)
    ]
    in_store = np.array([-1 if image.store is None else image.store for image in images])
    together = stores.stamps([image.name for image in images], in_store)
    for image, (size, mtime) in zip(images, together.tolist(), strict=True):
        expected = stamp_or_reason(partial(stores.stamp, image))
        faults: dict[object, int] = {"image_missing": MISSING, "image_path": FAULT}
        assert size == faults[expected] if expected in faults else (size, mtime) == expected


@given(st.lists(st.text("ab./\\:\n\0 ", max_size=6), max_size=4))
@example(["a", ""])
@example(["a/.."])
@example(["a\n../b"])
def test_names_that_pass_together_pass_one_by_one(names: list[str]) -> None:
    if paths := plain_paths(names):
        assert [os.fsdecode(path) for path in paths] == names
        for name in names:
            check_name(name[:MAX_NAME_CHARACTERS], in_folder=True)
