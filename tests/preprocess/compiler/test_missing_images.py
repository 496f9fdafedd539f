"""A dataset whose images are all missing: the build says where they are, and what to change."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import pytest

from preprocess.compiler.missing_images import missing_images_hint
from preprocess.compiler.report import DatasetReport
from preprocess.compiler.spool import Spool, write_spool
from preprocess.conversation import Conversation, Image, RecordSource, Turn


def hint(root: Path, *names: str, images: int = 0, reason: str = "image_missing") -> str:
    records = [
        Conversation(
            id=name,
            turns=(Turn(role="user", parts=(Image(name=name),)), Turn(role="assistant", parts=("Yes.",))),
            sources=(RecordSource(file="a.json", record=name),),
        )
        for name in names
    ]
    folder = root.parent / "spool"
    folder.mkdir()
    write_spool(folder, "mine", records)
    report = DatasetReport(name="mine", records=len(names), inputs=(), images=images, rejects=Counter({reason: 1}))
    return missing_images_hint(report, Spool(folder), root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    (path / "train/images").mkdir(parents=True)
    return path


def test_a_folder_one_level_off_is_named(root: Path) -> None:
    (root / "train/images/a.jpg").write_bytes(b"x")
    assert hint(root, "none.jpg", "a.jpg").endswith("set the dataset's images: [train/images]")


def test_an_archive_that_images_does_not_name_is_named(root: Path) -> None:
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        archive.writestr("photos/a.jpg", b"x")
    assert "photos/a.jpg is in images.zip; set" in hint(root, "photos/a.jpg")


def test_a_file_with_another_path_in_the_records_is_named(root: Path) -> None:
    (root / "train/images/a.jpg").write_bytes(b"x")
    assert "the records name other/a.jpg, and train/images/a.jpg is below the root" in hint(root, "other/a.jpg")


def test_nothing_found_is_said(root: Path) -> None:
    assert hint(root, "a.jpg") == f"all images are missing; a.jpg is in no folder or archive near {root}"


@pytest.mark.parametrize(("images", "reason"), [(1, "image_missing"), (0, "image_unreadable")])
def test_a_dataset_with_images_or_other_faults_is_not_searched(images: int, reason: str, root: Path) -> None:
    (root / "train/images/a.jpg").write_bytes(b"x")
    assert hint(root, "a.jpg", images=images, reason=reason) == ""


def test_urls_and_images_inside_records_are_not_searched(root: Path) -> None:
    assert hint(root, "https://example.org/a.jpg", "data:0123") == ""
