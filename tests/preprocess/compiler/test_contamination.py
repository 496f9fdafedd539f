"""`decontaminate`: what an evaluation set shows or asks is not trained."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import shards
from preprocess.blend.config import Blend, Dataset
from preprocess.blend.evaluation_sets import EvaluationSet, find_evaluation_sets
from preprocess.blend.load import check_blend
from preprocess.compiler.report import print_report
from preprocess.compiler.select import Selection, select
from preprocess.compiler.split_assignment import EVAL, EXCLUDED, TRAIN
from preprocess.conversation import Conversation
from preprocess.errors import ConfigError, DataError
from preprocess.views.stats import build_stats, print_stats
from shards.format.manifest import EvaluationQuestions
from tests.support.handmade_builds import make
from tests.support.image_datasets import about, stage_of
from tests.support.small_blends import SAMPLES, build, chat_blend, chat_record, jpeg

LONG = "How many of the red boats in the harbour have a white sail that is torn?"


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def selected(
    folder: Path, datasets: Mapping[str, Iterable[Conversation]], *sets: Mapping[str, Any], **keys: Any
) -> Selection:
    evaluation = tuple(EvaluationSet(**one) for one in sets)
    blend = Blend(
        tokenizer="",
        datasets=tuple(Dataset(name=name, adapter="chat", samples="all") for name in datasets),
        decontaminate=evaluation,
        **keys,
    )
    assert check_blend(blend) == []
    return select(blend, stage_of(folder, datasets), find_evaluation_sets(evaluation, folder))


def details(selection: Selection, name: str = "x") -> dict[int, str]:
    return {
        row: exclusion.describe(match)
        for exclusion in selection.exclusions[name]
        for row, match in zip(exclusion.rows.tolist(), exclusion.matches.tolist(), strict=True)
    }


def write_photo(path: Path, *, half: bool = False, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(SAMPLES / "coco/2014/COCO_train2014_000000000102.jpg") as photo:
        (photo.resize((photo.width // 2, photo.height // 2)) if half else photo).save(path, **options)


def test_a_record_with_an_image_of_the_evaluation_set_is_rejected_whatever_it_says(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / f"x/{number}.jpg", jpeg(number))
    write(tmp_path / "bench/deep/here.jpg", jpeg(2))
    records = [about("0.jpg"), about("1.jpg", "2.jpg"), about("2.jpg", question="Other words?"), about("3.jpg")]
    selection = selected(tmp_path, {"x": records}, {"images": "bench"})
    assert selection.sides["x"].tolist() == [TRAIN, EXCLUDED, EXCLUDED, TRAIN]
    expected = "shows deep/here.jpg of bench (match by bytes)"
    assert details(selection) == {1: expected, 2: expected}


def test_the_eval_side_of_the_blend_stays(tmp_path: Path) -> None:
    write(tmp_path / "x/a.jpg", jpeg(1))
    write(tmp_path / "bench/a.jpg", jpeg(1))
    records = [about("a.jpg", official_split="test"), about(question="Why?")]
    assert selected(tmp_path, {"x": records}, {"images": "bench"}).sides["x"].tolist() == [EVAL, TRAIN]


def test_equal_pixels_and_close_looks_match_unless_only_bytes_are_asked_for(tmp_path: Path) -> None:
    write_photo(tmp_path / "bench/photo.png")
    write_photo(tmp_path / "x/pixels.png", compress_level=1)
    write_photo(tmp_path / "x/near.jpg", half=True, quality=60)
    write(tmp_path / "x/other.jpg", jpeg(1))
    datasets = {"x": [about("pixels.png"), about("near.jpg"), about("other.jpg")]}
    assert details(selected(tmp_path, datasets, {"images": "bench"})) == {
        0: "shows photo.png of bench (match by pixels)",
        1: "shows photo.png of bench (match by near)",
    }
    assert details(selected(tmp_path, datasets, {"images": "bench", "match": "bytes"})) == {}


def test_the_images_of_an_archive_and_of_a_build_are_read(tmp_path: Path) -> None:
    write(tmp_path / "x/a.jpg", jpeg(1))
    write(tmp_path / "x/b.jpg", jpeg(2))
    with tarfile.open(tmp_path / "bench.tar", "w") as tar:
        tar.add(tmp_path / "x/a.jpg", "one.jpg")
    datasets = {"x": [about("a.jpg"), about("b.jpg")]}
    assert details(selected(tmp_path, datasets, {"images": "bench.tar"})) == {
        0: "shows one.jpg of bench.tar (match by bytes)"
    }
    make(tmp_path / "build")
    write(tmp_path / "x/b.jpg", shards.open(tmp_path / "build")["train"][1].images[0].tobytes())
    matches = details(selected(tmp_path, datasets, {"images": "build"}))
    assert {row: text.split(" of ")[1] for row, text in matches.items()} == {1: "build (match by bytes)"}
    assert "shards/alpha/train-00000" in matches[1]


def test_a_row_that_two_evaluation_sets_and_a_question_match_is_rejected_once(tmp_path: Path) -> None:
    for name in ("x/a.jpg", "one/a.jpg", "two/a.jpg"):
        write(tmp_path / name, jpeg(1))
    (tmp_path / "q.txt").write_text(LONG)
    sets: list[dict[str, object]] = [{"images": "one", "questions": "q.txt"}, {"images": "two"}]
    selection = selected(tmp_path, {"x": [about("a.jpg", question=LONG)] * 2, "y": []}, *sets, dedupe="exact")
    parts = [part.rows.tolist() for part in selection.exclusions["x"]]
    assert sorted(row for rows in parts for row in rows) == [0, 1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.txt", f"Short?\n\n{LONG}\n"),
        ("q.jsonl", json.dumps({"question": LONG}) + "\n"),
        ("q.json", json.dumps([{"question": LONG}])),
        ("q.json", json.dumps({"info": {}, "questions": [{"question": LONG, "id": 3}]})),
    ],
)
def test_a_record_that_repeats_a_question_is_rejected(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    records = [
        about(question=f"Look: {LONG.upper().replace(' of', ',  of')} Say a number."),
        about(question="How many of the red boats in the harbour are new?"),
        about(question="Short?"),
    ]
    matches = details(selected(tmp_path, {"x": records}, {"questions": name}))
    assert matches == {0: f"repeats 13 words of a question of {name}: {LONG!r}"}


def test_answers_are_not_compared_with_questions(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text(LONG)
    assert details(selected(tmp_path, {"x": [about(question="Ask?", answer=LONG)]}, {"questions": "q.txt"})) == {}


def test_a_smaller_ngram_finds_shorter_runs(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("Is the second boat green?")
    record = about(question="And is the second boat red?")
    assert details(selected(tmp_path, {"x": [record]}, {"questions": "q.txt", "ngram": 5})) == {}
    assert list(details(selected(tmp_path, {"x": [record]}, {"questions": "q.txt", "ngram": 4}))) == [0]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("q.txt", "Too short?", "longest question has 2 words; expected one of at least 13"),
        ("q.txt", "", "longest question has 0 words"),
        (
            "q.jsonl",
            '{"question": "a"}\n{"text": "b"}',
            r"record 2: got the keys text; expected a text under 'question'",
        ),
        ("q.jsonl", "{broken", "line 1: is not JSON"),
        ("q.json", '{"a": [], "b": []}', "exactly one list"),
        ("q.json", "[3]", "record 1: got int"),
    ],
)
def test_a_file_of_questions_that_cannot_be_used_is_an_error(
    tmp_path: Path, name: str, content: str, expected: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=expected):
        selected(tmp_path, {"x": [about(question="Why?")]}, {"questions": name})


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    with pytest.raises(DataError, match="has no images; expected files named"):
        selected(tmp_path, {"x": [about(question="Why?")]}, {"images": "bench"})


def test_a_name_that_is_not_text_is_an_error_and_not_left_out(tmp_path: Path) -> None:
    write(tmp_path / "bench" / os.fsdecode(b"\xff.jpg"), jpeg(1))
    with pytest.raises(DataError, match="the name of this image is not UTF-8"):
        selected(tmp_path, {"x": [about(question="Why?")]}, {"images": "bench"})


def test_missing_files_are_reported_all_at_once_before_work_starts(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("")
    sets = [EvaluationSet(images="nowhere", questions="none.txt"), EvaluationSet(questions="q.csv")]
    with pytest.raises(ConfigError) as caught:
        find_evaluation_sets(sets, tmp_path)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "decontaminate.0.images",
        "decontaminate.0.questions",
        "decontaminate.1.questions",
    ]


def test_an_evaluation_set_of_nothing_is_refused() -> None:
    blend = Blend(
        tokenizer="", datasets=(Dataset(name="x", adapter="chat", samples="all"),), decontaminate=(EvaluationSet(),)
    )
    assert check_blend(blend) == ["decontaminate.0: got neither images nor questions; expected at least one of them"]


@pytest.mark.usefixtures("builds_in_this_process")
def test_questions_that_are_too_short_are_counted_in_the_report_and_in_the_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bench.txt").write_text(f"{LONG}\nWhy?\nIs it red?\n", encoding="utf-8")
    records = [chat_record(number) for number in range(3)]
    report = build(chat_blend(tmp_path, records, decontaminate=[{"questions": "bench.txt"}]))
    expected = EvaluationQuestions(file="bench.txt", ngram=13, count=3, too_short=2)
    opened = shards.open(report.path)
    assert tuple(report.questions) == opened.manifest.questions == (expected,)
    print_report(report)
    print_stats(build_stats(opened), {}, opened.manifest.questions or ())
    line = "decontaminate: bench.txt: 2 of 3 questions have fewer than 13 words and match nothing"
    assert " ".join(capsys.readouterr().out.split()).count(line) == 2
