"""States of images: a row has another state exactly when an image that it names has another file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.compiler import image_states
from preprocess.compiler.spool import Spool
from preprocess.conversation import Conversation, Image, RecordSource, Turn
from preprocess.errors import RejectError
from preprocess.images.stores import open_stores
from tests.support.image_datasets import Here, about, spools_of

NAMES = ("a.jpg", "b.jpg", "below/a.jpg", "absent.jpg", "../a.jpg")
IMAGES = st.builds(
    Image,
    name=st.sampled_from(NAMES),
    store=st.none() | st.integers(0, 1),
    frame=st.none() | st.integers(0, 2),
)
ROWS = st.lists(st.lists(IMAGES, max_size=3), max_size=6)
CHANGES = st.lists(st.tuples(st.integers(0, 1), st.sampled_from(NAMES[:4]), st.integers(0, 3)), max_size=4)
"""Store, name, and the size of the file; 0 removes it"""


def shows(number: int, images: Sequence[Image]) -> Conversation:
    source = RecordSource(file="a.json", record=str(number))
    return Conversation(id=str(number), turns=(Turn(role="user", parts=tuple(images)),), sources=(source,))


def slow_states(spool: Spool, stores: tuple[Path, ...], cache: Path) -> list[list[tuple[object, ...]]]:
    """The slow twin: for each row the names, frames and stamps of its images."""
    opened = open_stores(stores, cache)

    def state(image: Image) -> tuple[object, ...]:
        try:
            return image.name, image.frame, opened.stamp(image)
        except RejectError as error:
            return image.name, image.frame, error.reason

    return [[state(image) for image in spool[row].images] for row in range(len(spool))]


def write(root: Path, changes: Sequence[tuple[int, str, int]], when: int) -> None:
    for store, name, size in changes:
        path = root / str(store) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if size:
            path.write_bytes(b"x" * size)
            os.utime(path, (when, when))


@given(ROWS, CHANGES, CHANGES, st.integers(1, 3))
def test_a_row_has_another_state_exactly_when_an_image_has_another_file(
    rows: list[list[Image]],
    before: list[tuple[int, str, int]],
    after: list[tuple[int, str, int]],
    task_rows: int,
) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_states, "_TASK_ROWS", task_rows)
        folder = Path(name)
        stores = (folder / "0", folder / "1")
        for store in stores:
            store.mkdir()
        spools = spools_of(folder, {"x": [shows(number, images) for number, images in enumerate(rows)]})
        looks, slow = [], []
        for when, changes in enumerate((before, after)):
            write(folder, changes, when)
            states = image_states.image_states(spools, {"x": stores}, folder, Here())["x"]
            assert len(states) == sum(map(len, rows)) == spools["x"].num_images
            looks.append(spools["x"].hash_of_images(states).tolist())
            slow.append(slow_states(spools["x"], stores, folder))
        every = [*zip(looks[0], slow[0], strict=True), *zip(looks[1], slow[1], strict=True)]
        assert all((a == b) == (slow_a == slow_b) for a, slow_a in every for b, slow_b in every)


@pytest.mark.parametrize("few", [0, 100])
def test_images_are_looked_up_by_tasks_if_there_are_many(
    few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here counts only tasks whose results last, so a look at images is not finished work."""
    monkeypatch.setattr(image_states, "_FEW_IMAGES", few)
    monkeypatch.setattr(image_states, "_TASK_ROWS", 2)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/1.jpg").write_bytes(b"x")
    spools = spools_of(tmp_path, {"x": [about(f"{number}.jpg") for number in range(5)], "y": [], "z": [about()]})
    stores = dict.fromkeys(spools, (tmp_path / "x",))
    run = Here()
    states = image_states.image_states(spools, stores, tmp_path, run)
    assert {name: len(values) for name, values in states.items()} == {"x": 5, "y": 0, "z": 0}
    assert len(set(states["x"].tolist())) == 5
    assert (run.built, run.reused, run.work) == (0, 0, 0)


def test_a_path_is_the_same_for_datasets_that_reach_a_file_through_other_folders(tmp_path: Path) -> None:
    (tmp_path / "all/coco").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "all/coco")
    spools = spools_of(
        tmp_path, {"x": [about(("coco/a.jpg", 0), ("coco/b.jpg", 0))], "y": [about("a.jpg")], "z": [about("a.jpg")]}
    )
    stores = {"x": (tmp_path / "all",), "y": (tmp_path / "all/coco",), "z": (tmp_path / "link",)}
    paths = image_states.image_paths(spools, stores, Here())
    assert paths["y"].tolist() == paths["z"].tolist() == paths["x"].tolist()[:1] != paths["x"].tolist()[1:]
