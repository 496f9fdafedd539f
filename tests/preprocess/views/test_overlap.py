"""`overlap` lists the images that two collections share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from preprocess.errors import ConfigError, DataError
from preprocess.views.overlap import Overlap, find_overlap, print_overlap
from tests.support.in_process import in_this_process
from tests.support.small_blends import SAMPLES, jpeg


def overlap(first: Path, second: Path, **options: Any) -> Overlap:
    return find_overlap(first, second, engine=in_this_process, **options)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """a and b share an equal file, equal pixels, and a photo of half the size; each has an image of its own."""
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second / "deep"):
        folder.mkdir(parents=True)
    (first / "file.jpg").write_bytes(jpeg(1))
    (second / "deep/copy.jpg").write_bytes(jpeg(1))
    (first / "own.jpg").write_bytes(jpeg(2))
    (second / "other.jpg").write_bytes(jpeg(3))
    with Image.open(SAMPLES / "coco/2014/COCO_train2014_000000000102.jpg") as photo:
        photo.save(first / "pixels.png")
        photo.save(second / "pixels.png", compress_level=1)
        photo.resize((photo.width // 2, photo.height // 2)).save(first / "half.jpg", quality=60)
    return first, second


def test_each_pair_says_how_strictly_it_matches(folders: tuple[Path, Path]) -> None:
    result = overlap(*folders)
    assert result.images == (4, 3)
    assert result.pairs == (
        ("file.jpg", "deep/copy.jpg", "bytes"),
        ("half.jpg", "pixels.png", "near"),
        ("pixels.png", "pixels.png", "pixels"),
    )
    assert result.counts() == {"bytes": 1, "pixels": 1, "near": 1}


def test_by_bytes_only_equal_files_match(folders: tuple[Path, Path]) -> None:
    assert overlap(*folders, match="bytes").pairs == (("file.jpg", "deep/copy.jpg", "bytes"),)


def test_json_lists_all_pairs(folders: tuple[Path, Path]) -> None:
    tree = overlap(*folders, match="bytes").to_json()
    assert tree["pairs"] == [{"first": "file.jpg", "second": "deep/copy.jpg", "match": "bytes"}]
    assert tree["images"] == [4, 3]


def test_the_table_names_the_first_pairs(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    print_overlap(overlap(*folders))
    text = capsys.readouterr().out
    assert "4 and 3 images; 3 of the first are in the second" in text
    assert "deep/copy.jpg" in text


def test_nothing_is_written_next_to_the_images(folders: tuple[Path, Path]) -> None:
    before = sorted(folders[0].parent.rglob("*"))
    overlap(*folders)
    assert sorted(folders[0].parent.rglob("*")) == before


def test_a_path_that_does_not_exist_and_a_folder_without_images_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        overlap(tmp_path, tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no images and no questions"):
        overlap(tmp_path, tmp_path)
