"""`dedupe`: which records repeat another one, and which of them stays."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from preprocess.blend.config import Blend, Dataset, Split
from preprocess.compiler.select import Selection, select
from preprocess.compiler.split_assignment import EVAL, EXCLUDED, TRAIN
from preprocess.conversation import Conversation, Turn
from tests.support.image_datasets import Here, about, stage_of
from tests.support.small_blends import SAMPLES, build, chat_blend, chat_record, jpeg, rejects_of


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_photo_and_copy(folder: Path) -> None:
    """a.png, and b.jpg of half the size."""
    folder.mkdir(parents=True)
    with Image.open(SAMPLES / "coco/2014/COCO_train2014_000000000102.jpg") as photo:
        photo.save(folder / "a.png")
        photo.resize((photo.width // 2, photo.height // 2)).save(folder / "b.jpg", quality=60)


def selected(
    folder: Path, datasets: Mapping[str, Iterable[Conversation]], own: Mapping[str, Any] | None = None, **keys: Any
) -> Selection:
    blend = Blend(
        tokenizer="",
        datasets=tuple(Dataset(name=name, adapter="chat", **(own or {}).get(name, {})) for name in datasets),
        **keys,
    )
    return select(blend, stage_of(folder, datasets))


def details(selection: Selection, name: str) -> list[tuple[int, str]]:
    return [
        (row, exclusion.describe(match))
        for exclusion in selection.exclusions[name]
        for row, match in zip(exclusion.rows.tolist(), exclusion.matches.tolist(), strict=True)
    ]


BYTES = {"a.jpg": 1, "b.jpg": 2, "copy of a.jpg": 1}


@given(st.lists(st.tuples(st.lists(st.sampled_from(sorted(BYTES)), max_size=3), st.sampled_from("xy")), max_size=8))
def test_duplicates_are_those_of_a_loop(rows: list[tuple[list[str], str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, number in BYTES.items():
            write(Path(folder) / "x" / name, jpeg(number))
        records = [about(*names, question=question) for names, question in rows]
        sides = selected(Path(folder), {"x": records}, dedupe="exact").sides["x"].tolist()
    keys = [([BYTES[name] for name in names], question) for names, question in rows]
    assert sides == [TRAIN if keys.index(key) == row else EXCLUDED for row, key in enumerate(keys)]


def test_a_record_with_equal_texts_and_images_is_rejected_with_the_name_of_the_first(tmp_path: Path) -> None:
    for name in ("x/a.jpg", "y/b.jpg"):
        write(tmp_path / name, jpeg(1))
    first, again = about("a.jpg", identity="one"), about("b.jpg", identity="two")
    selection = selected(tmp_path, {"x": [first, first], "y": [again]}, dedupe="exact")
    assert {name: side.tolist() for name, side in selection.sides.items()} == {"x": [TRAIN, EXCLUDED], "y": [EXCLUDED]}
    assert details(selection, "y") == [(0, "same images and texts as a.json one of dataset x")]


def test_many_questions_about_one_image_are_no_duplicates(tmp_path: Path) -> None:
    write(tmp_path / "x/a.jpg", jpeg(1))
    records = [about("a.jpg", question=f"Question {number}?") for number in range(5)]
    records += [about("a.jpg", question="Question 1?", answer="Another answer.")]
    assert details(selected(tmp_path, {"x": records}, dedupe="exact"), "x") == []


def test_one_question_about_many_images_is_no_duplicate(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"x/{number}.jpg", jpeg(number))
    records = [about(f"{number}.jpg") for number in range(3)] + [about("0.jpg", "1.jpg"), about("1.jpg", "0.jpg")]
    assert details(selected(tmp_path, {"x": records}, dedupe="exact"), "x") == []


@pytest.mark.parametrize(
    ("question", "duplicate"),
    [
        ("What is it?", True),
        ("what  is\nIT?", True),
        ("ｗhat is it?", True),
        ("What is it", False),
        ("What is 1t?", False),
    ],
)
def test_case_whitespace_and_unicode_forms_make_no_difference(tmp_path: Path, question: str, duplicate: bool) -> None:
    records = [about(question="What is it?", identity="a"), about(question=question, identity="b")]
    assert bool(details(selected(tmp_path, {"x": records}, dedupe="exact"), "x")) == duplicate


def test_a_turn_that_is_not_trained_makes_another_record(tmp_path: Path) -> None:
    record = about(question="Why?")
    turns = (record.turns[0], Turn(role="assistant", parts=record.turns[1].parts, trained=False), *record.turns)
    other = (record.turns[0], record.turns[1], *record.turns)
    both = [Conversation(id=name, turns=each, sources=record.sources) for name, each in (("a", turns), ("b", other))]
    assert details(selected(tmp_path, {"x": both}, dedupe="exact"), "x") == []


def test_a_dataset_may_keep_its_duplicates(tmp_path: Path) -> None:
    records = [about(question="Why?")] * 2
    datasets = {"x": records, "y": records}
    selection = selected(tmp_path, datasets, {"x": {"dedupe": "off"}}, dedupe="exact")
    assert [row for row, _ in details(selection, "x")] == []
    assert [row for row, _ in details(selection, "y")] == [0, 1]


def test_the_record_of_the_eval_side_stays(tmp_path: Path) -> None:
    datasets = {"x": [about(question="Why?")], "y": [about(question="Why?", official_split="val")]}
    sides = selected(tmp_path, datasets, dedupe="exact").sides
    assert {name: side.tolist() for name, side in sides.items()} == {"x": [EXCLUDED], "y": [EVAL]}


def test_near_also_finds_a_copy_that_was_resized_and_encoded_again(tmp_path: Path) -> None:
    write_photo_and_copy(tmp_path / "x")
    write(tmp_path / "x/c.jpg", jpeg(1))
    datasets = {"x": [about("a.png"), about("b.jpg"), about("c.jpg")]}
    assert [row for row, _ in details(selected(tmp_path, datasets, dedupe="near"), "x")] == [1]
    assert details(selected(tmp_path, datasets, dedupe="exact"), "x") == []


def test_near_copies_stay_on_one_side_if_the_split_asks_for_it(tmp_path: Path) -> None:
    write_photo_and_copy(tmp_path / "x")
    datasets = {"x": [about("a.png", official_split="val"), about("b.jpg", question="Why?"), about(question="Who?")]}
    assert selected(tmp_path, datasets).sides["x"].tolist() == [EVAL, TRAIN, TRAIN]
    assert selected(tmp_path, datasets, split=Split(copies="near")).sides["x"].tolist() == [EVAL, EVAL, TRAIN]


def test_without_a_switch_or_an_eval_side_no_image_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    run = Here()
    stage = stage_of(tmp_path, {"x": [about("missing.jpg")]}, run=run)
    select(Blend(tokenizer="", datasets=(Dataset(name="x", adapter="chat"),)), stage)
    assert run.work == 0


def test_a_build_counts_its_duplicates_and_does_not_fail_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [chat_record(number % 2) for number in range(10)]
    blend = chat_blend(tmp_path, records, dataset={"dedupe": "exact", "options": {"duplicate_ids": "keep"}})
    report = build(blend).datasets["mine"]
    assert report.rejects == {"duplicate": 8}
    assert report.members == 2
    assert rejects_of(tmp_path / "build")[0]["detail"] == "same images and texts as chat.jsonl r0 of dataset mine"
