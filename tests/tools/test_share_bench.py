"""The data and the checks of the benchmark of shared images."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tools.bench.sharing import questions
from tools.bench.sharing.builds import folder_size
from tools.bench.sharing.questions import QUESTIONS, SHARES, make_questions
from tools.bench.sharing.steps import check_equal


def test_photos_have_as_many_questions_as_those_of_vqa_v2_and_no_more_than_can_share() -> None:
    assert sum(QUESTIONS) / len(QUESTIONS) == 5.4
    assert max(QUESTIONS) <= max(SHARES)


def test_questions_are_about_their_photos_and_each_has_an_annotation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "photo_files", lambda: [b"one", b"two"])
    assert make_questions(tmp_path, 3) == sum(QUESTIONS[:3])
    asked = json.loads(next(tmp_path.glob("vqa_v2/*questions.json")).read_text())["questions"]
    answered = json.loads(next(tmp_path.glob("vqa_v2/*annotations.json")).read_text())["annotations"]
    assert Counter(record["image_id"] for record in asked) == dict(enumerate(QUESTIONS[:3], start=1))
    assert [record["question_id"] for record in asked] == [record["question_id"] for record in answered]
    assert len({record["question_id"] for record in asked}) == len(asked)
    assert len(list(tmp_path.glob("coco/train2014/COCO_train2014_*.jpg"))) == 3


def test_the_size_of_a_build_counts_the_files_of_all_folders(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "inner/b").write_bytes(b"45")
    assert folder_size(tmp_path) == 5


def test_sides_with_other_losses_are_not_compared() -> None:
    check_equal(231.52993774414062, 231.52992248535156, 1e-5)
    with pytest.raises(SystemExit, match=r"231\.5 as separate samples and 231\.6 as shared ones"):
        check_equal(231.5, 231.6, 1e-5)
