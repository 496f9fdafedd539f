"""A dataset whose images are missing, all or many: the build says where they are, and what to change."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import pytest

from preprocess.compiler.missing_images import missing_images_hint
from preprocess.compiler.report import DatasetReport
from preprocess.compiler.spool import Spool, write_spool
from preprocess.conversation import Conversation, Image, RecordSource, Turn
from preprocess.images.stores import FolderStore, StoreList


def hint(root: Path, *names: str, images: int = 0, missing: int | None = None, reason: str = "image_missing") -> str:
    """images: that the build found. missing: records without theirs; all without a number."""
    records = [
        Conversation(
            id=str(number),
            turns=(Turn(role="user", parts=(Image(name=name),)), Turn(role="assistant", parts=("Yes.",))),
            sources=(RecordSource(file="a.json", record=str(number)),),
        )
        for number, name in enumerate(names)
    ]
    folder = root.parent / "spool"
    folder.mkdir()
    write_spool(folder, "mine", records)
    rejects = Counter({reason: len(names) if missing is None else missing})
    report = DatasetReport(name="mine", records=len(names), inputs=(), images=images, rejects=rejects)
    store = root / "photos"
    return missing_images_hint(report, Spool(folder), root, (store,), lambda: StoreList([FolderStore(store)]))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    (path / "train/images").mkdir(parents=True)
    (path / "photos").mkdir()
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


def test_a_file_with_another_extension_is_named(root: Path) -> None:
    (root / "train/images/a.PNG").write_bytes(b"x")
    assert hint(root, "images/a.jpg").endswith(
        "the records name images/a.jpg, and train/images/a.PNG is there: give both the same extension"
    )


def test_many_missing_images_are_searched_for_among_those_that_are_there(root: Path) -> None:
    for number in range(90):
        (root / f"photos/{number}.jpg").write_bytes(b"x")
    for number in range(90, 100):
        (root / f"train/images/{number}.jpg").write_bytes(b"x")
    assert hint(root, *(f"{number}.jpg" for number in range(100)), images=90, missing=10) == (
        "images of 10 records are missing, but 90.jpg is in train/images; set the dataset's images: "
        "[photos, train/images]"
    )


def test_the_search_asks_for_a_few_images_however_many_are_missing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    stamp = FolderStore.stamp

    def counted(store: FolderStore, name: str) -> tuple[int, int]:
        asked.append(name)
        return stamp(store, name)

    monkeypatch.setattr(FolderStore, "stamp", counted)
    assert "is in no folder or archive near" in hint(root, *(f"{number}.jpg" for number in range(5000)))
    assert len(asked) < 500


@pytest.mark.parametrize(
    ("images", "missing", "reason"), [(95, 5, "image_missing"), (0, 100, "image_unreadable"), (50, 0, "image_missing")]
)
def test_a_dataset_with_few_missing_images_or_other_faults_is_not_searched(
    images: int, missing: int, reason: str, root: Path
) -> None:
    (root / "train/images/a.jpg").write_bytes(b"x")
    assert hint(root, *(["a.jpg"] * 100), images=images, missing=missing, reason=reason) == ""


def test_urls_and_images_inside_records_are_not_searched(root: Path) -> None:
    assert hint(root, "https://example.org/a.jpg", "data:0123") == ""
