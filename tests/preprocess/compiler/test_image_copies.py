"""Copies of an image, under any name and in any dataset, are known before the split."""

from __future__ import annotations

import tarfile
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from preprocess.compiler.image_copies import Copies, copies_by_bytes
from preprocess.compiler.split_assignment import EVAL, TRAIN, assign
from preprocess.images.stores import prepare_store
from tests.support.image_datasets import Here, about, stage_of
from tests.support.small_blends import jpeg


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def kinds(copies: Copies) -> dict[str, list[int]]:
    """Dataset -> for each image of its records, the first image with the same bytes."""
    return {name: copies.kinds[numbers].tolist() for name, numbers in copies.images.numbers.items()}


def test_the_same_bytes_under_two_names_in_two_datasets_are_copies(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"x/a{number}.jpg", jpeg(number))
        write(tmp_path / f"y/b{number}.jpg", jpeg(number))
    write(tmp_path / "y/own.jpg", jpeg(9))
    x = [about(f"a{number}.jpg") for number in range(3)]
    y = [about("b2.jpg"), about("own.jpg"), about("b0.jpg", "b1.jpg")]
    copies = copies_by_bytes(stage_of(tmp_path, {"x": x, "y": y}))
    assert kinds(copies) == {"x": [0, 1, 2], "y": [2, 4, 0, 1]}


def test_rows_with_copies_share_a_group_and_all_others_keep_theirs(tmp_path: Path) -> None:
    write(tmp_path / "x/a.jpg", jpeg(1))
    write(tmp_path / "x/b.jpg", jpeg(1))
    write(tmp_path / "x/c.jpg", jpeg(2))
    stage = stage_of(tmp_path, {"x": [about("a.jpg"), about("c.jpg"), about(question="Why?"), about("c.jpg", "b.jpg")]})
    spool = stage.spools["x"]
    before, old_starts = spool.lists("groups")
    groups, starts = copies_by_bytes(stage).groups("x", spool)
    rows = [groups[start:end].tolist() for start, end in pairwise(starts.tolist())]
    old = [before[start:end].tolist() for start, end in pairwise(old_starts.tolist())]
    shared = set(rows[0]) & set(rows[3])
    assert len(shared) == 1
    assert rows == [[*old[0], *shared], old[1], [], [*old[3], *shared]]


def test_the_group_of_copies_does_not_depend_on_other_images(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write(tmp_path / folder / "x/a.jpg", jpeg(1))
        write(tmp_path / folder / "x/b.jpg", jpeg(1))
    write(tmp_path / "two/x/0.jpg", jpeg(7))
    write(tmp_path / "two/x/00.jpg", jpeg(7))
    few = copies_by_bytes(stage_of(tmp_path / "one", {"x": [about("a.jpg"), about("b.jpg")]}))
    names = ("0.jpg", "00.jpg", "a.jpg", "b.jpg")
    many = copies_by_bytes(stage_of(tmp_path / "two", {"x": [about(name) for name in names]}))
    assert few.ids.tolist() == many.ids[2:].tolist()


def test_files_of_one_size_and_one_end_are_copies_only_if_all_bytes_are_equal(tmp_path: Path) -> None:
    end = bytes(8192)
    for name, start in {"a": b"one", "b": b"two", "c": b"one"}.items():
        write(tmp_path / "x" / name, start + end)
    copies = copies_by_bytes(stage_of(tmp_path, {"x": [about("a"), about("b"), about("c")]}))
    assert kinds(copies) == {"x": [0, 1, 0]}


def test_only_files_of_equal_size_and_end_are_read_in_full(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path / f"x/{number}.jpg", bytes([number]) * (100 + number))
    write(tmp_path / "x/again.jpg", bytes([3]) * 103)
    run = Here()
    copies_by_bytes(stage_of(tmp_path, {"x": [about(f"{n}.jpg") for n in range(20)] + [about("again.jpg")]}, run=run))
    assert run.work == 21 + 2


def test_a_file_that_two_datasets_and_many_records_name_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "all/coco/a.jpg", jpeg(1))
    records = [about("coco/a.jpg", question=f"Question {number}?") for number in range(5)]
    stores = {"x": [tmp_path / "all"], "y": [tmp_path / "all/coco"]}
    run = Here()
    copies = copies_by_bytes(stage_of(tmp_path, {"x": records, "y": [about("a.jpg")]}, stores, run))
    assert kinds(copies) == {"x": [0] * 5, "y": [0]}
    assert run.work == 1


def test_copies_are_found_across_folders_and_archives(tmp_path: Path) -> None:
    data = jpeg(1, size=(200, 200))
    write(tmp_path / "x/a.jpg", data)
    for method, name in ((zipfile.ZIP_STORED, "stored.zip"), (zipfile.ZIP_DEFLATED, "deflated.zip")):
        with zipfile.ZipFile(tmp_path / name, "w", method) as archive:
            archive.writestr("b.jpg", data)
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        tar.add(tmp_path / "x/a.jpg", "c.jpg")
    stores = {"x": [tmp_path / name for name in ("x", "stored.zip", "deflated.zip", "c.tar")]}
    for path in stores["x"]:
        prepare_store(path, tmp_path / ".cache")
    records = [about(("a.jpg", 0)), about(("b.jpg", 1)), about(("b.jpg", 2)), about("c.jpg")]
    assert kinds(copies_by_bytes(stage_of(tmp_path, {"x": records}, stores))) == {"x": [0, 0, 0, 0]}


def test_images_that_are_missing_or_empty_are_copies_of_nothing(tmp_path: Path) -> None:
    write(tmp_path / "x/empty.jpg", b"")
    write(tmp_path / "x/void.jpg", b"")
    records = [about(name) for name in ("empty.jpg", "void.jpg", "none.jpg", "nothing.jpg", "../a.jpg", "../b.jpg")]
    assert kinds(copies_by_bytes(stage_of(tmp_path, {"x": records}))) == {"x": [0, 1, 2, 3, 4, 5]}


def test_a_blend_without_images_has_no_copies(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, {"x": [about(question="Why?")], "y": []})
    copies = copies_by_bytes(stage)
    assert len(copies.images) == 0
    assert [len(copies.groups(name, spool)[0]) for name, spool in stage.spools.items()] == [0, 0]


def test_fingerprints_are_kept_until_their_file_changes(tmp_path: Path) -> None:
    write(tmp_path / "x/a.jpg", jpeg(1))
    write(tmp_path / "x/b.jpg", jpeg(2))

    def copies_found(expected_work: int) -> list[int]:
        run = Here()
        copies = copies_by_bytes(stage_of(tmp_path, {"x": [about("a.jpg"), about("b.jpg")]}, run=run))
        assert run.work == expected_work
        return kinds(copies)["x"]

    assert copies_found(expected_work=2) == [0, 1]
    assert copies_found(expected_work=0) == [0, 1]
    write(tmp_path / "x/b.jpg", jpeg(1))
    assert copies_found(expected_work=2 + 2) == [0, 0]


@pytest.mark.parametrize("damage", [b"", b"no array", "cut"])
def test_a_damaged_result_is_computed_again(tmp_path: Path, damage: bytes | str) -> None:
    write(tmp_path / "x/a.jpg", jpeg(1))
    write(tmp_path / "x/b.jpg", jpeg(1))
    records = {"x": [about("a.jpg"), about("b.jpg")]}
    stage = stage_of(tmp_path, records)
    copies_by_bytes(stage)
    for path in stage.used:
        path.write_bytes(path.read_bytes()[:-9] if isinstance(damage, str) else damage)
    assert kinds(copies_by_bytes(stage_of(tmp_path, records))) == {"x": [0, 0]}


def test_no_copy_is_on_both_sides_of_the_split(tmp_path: Path) -> None:
    for number in range(40):
        write(tmp_path / f"x/a{number}.jpg", jpeg(number))
        write(tmp_path / f"y/b{number}.jpg", jpeg(number))
    x = [about(f"a{number}.jpg") for number in range(40)]
    y = [about(f"b{number}.jpg") for number in range(40)]
    stage = stage_of(tmp_path, {"x": x, "y": y})
    copies = copies_by_bytes(stage)
    parts = [copies.groups(name, spool) for name, spool in stage.spools.items()]
    groups, starts = np.concatenate([parts[0][0], parts[1][0]]), np.concatenate([parts[0][1], parts[1][1][1:] + 80])
    side = assign(groups, starts, groups[:0], np.zeros(80, bool), np.zeros(80, bool), share=0.5, seed=0)
    assert side[:40].tolist() == side[40:].tolist()
    assert set(side.tolist()) == {TRAIN, EVAL}
