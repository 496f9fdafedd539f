"""Captions: Karpathy's and the official COCO file, and MiniGPT-4's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preprocess.adapters.datasets.captions import COCO_PROMPTS, MINIGPT4_PROMPTS
from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation import Conversation, Image, RecordSource
from tests.support.adapting import adapted, conversations, rejects, request_for
from tests.support.paths import EXAMPLES

IMAGES = [
    {"id": 1, "file_name": "COCO_val2014_000000000001.jpg"},
    {"id": 2, "file_name": "COCO_val2014_000000000002.jpg"},
]
CAPTIONS = [
    {"id": 10, "image_id": 2, "caption": " A cat.\n"},
    {"id": 11, "image_id": 1, "caption": "A dog."},
    {"id": 12, "image_id": 2, "caption": "A tabby cat."},
]


def entry(**changed: Any) -> dict[str, Any]:
    sentences = [{"raw": " A cat.\n", "sentid": 7}, {"raw": "A cat  ,again", "sentid": 8}]
    whole = {"filename": "COCO_train2014_000000000009.jpg", "split": "train", "cocoid": 9, "sentences": sentences}
    return {key: value for key, value in {**whole, **changed}.items() if value != "absent"}


def test_each_sentence_of_karpathys_file_is_a_conversation() -> None:
    made = list(ADAPTERS["coco_caption"].read(request_for("coco_caption", EXAMPLES)))
    assert [item.id for item in conversations(made)] == [f"dataset/{n}" for n in (0, 1, 10, 11, 20, 21, 30, 31)]
    assert [item.official_split for item in conversations(made)] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    item = conversations(made)[2]
    assert item.turns[0].parts[0] == Image(name="COCO_train2014_000000000102.jpg")
    assert item.turns[0].parts[1] in COCO_PROMPTS
    assert item.turns[1].parts == ("A pink flower up close.",)
    assert item.references == ("A pink flower up close.", "One bloom on a green ground.")
    assert item.groups == ("coco:102",)
    assert item.sources == (RecordSource(file="coco_caption/dataset.json", record="10"),)


def test_an_aligned_caption_shows_the_image_of_its_id() -> None:
    first = conversations(list(ADAPTERS["minigpt4"].read(request_for("minigpt4", EXAMPLES))))[0]
    assert first.id == "filter_cap/2"
    assert first.turns[0].parts[0] == Image(name="2.jpg")
    assert first.turns[0].parts[1] in MINIGPT4_PROMPTS
    assert first.texts[1].startswith("The picture shows one pink flower")
    assert first.groups == ("image/2.jpg",)
    assert first.official_split == ""


@pytest.mark.parametrize("turned", [False, True])
def test_the_official_file_is_read_whatever_comes_first(tmp_path: Path, turned: bool) -> None:
    members = [("info", {}), ("images", IMAGES), ("annotations", CAPTIONS)]
    made = adapted("coco_caption", tmp_path, {"captions_val2014.json": dict(members[::-1] if turned else members)})
    assert [item.id for item in conversations(made)] == [f"captions_val2014/{n}" for n in (10, 11, 12)]
    first = made[0]
    assert isinstance(first, Conversation)
    assert first.turns[0].parts[0] == Image(name="COCO_val2014_000000000002.jpg")
    assert first.turns[1].parts == ("A cat.",)
    assert first.references == ("A cat.", "A tabby cat.")
    assert first.official_split == "val"


def test_an_official_image_without_captions_and_a_caption_without_image_are_refused(tmp_path: Path) -> None:
    images = [*IMAGES, {"id": 3, "file_name": "3.jpg"}, {"id": 1, "file_name": "x.jpg"}, {"id": 4}, 5]
    captions = [
        *CAPTIONS,
        {"id": 13, "image_id": 77, "caption": "Lost."},
        {"id": 14, "image_id": 4, "caption": "Lost."},
    ]
    made = adapted("coco_caption", tmp_path, {"c.json": {"images": images, "annotations": captions}})
    assert rejects(made) == [
        ("1", "duplicate_id"),
        ("4", "missing_key"),
        ("5", "wrong_type"),
        ("3", "no_answer"),
        ("13", "no_match"),
        ("14", "no_match"),
    ]
    assert len(conversations(made)) == 3


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"sentences": []}, "no_answer"),
        ({"sentences": "absent"}, "missing_key"),
        ({"sentences": {}}, "wrong_type"),
        ({"filename": "absent"}, "missing_key"),
        ({"filename": 3}, "wrong_type"),
        ({"filename": "\ud800"}, "bad_text"),
        ({"split": "holdout"}, "bad_value"),
        ({"split": 1}, "wrong_type"),
    ],
)
def test_an_image_entry_that_cannot_be_used_is_one_reject(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    made = adapted("coco_caption", tmp_path, {"d.json": {"images": [entry(cocoid=1, sentences=[]), entry(**changed)]}})
    assert rejects(made) == [("1", "no_answer"), ("9", reason)]


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ({"raw": ""}, "empty_answer"),
        ({"raw": " \n"}, "empty_answer"),
        ({"raw": None}, "wrong_type"),
        ({"raw": float("nan")}, "wrong_type"),
        ({"raw": "\ud800"}, "bad_text"),
        ({}, "missing_key"),
        (3, "wrong_type"),
        ({"raw": "Again.", "sentid": 7}, "duplicate_id"),
    ],
)
def test_a_bad_sentence_is_refused_alone_and_is_not_a_reference(tmp_path: Path, sentence: Any, reason: str) -> None:
    sentences = [{"raw": "A cat.", "sentid": 7}, sentence, {"raw": "Two  cats .\n", "sentid": 8}]
    made = adapted("coco_caption", tmp_path, {"d.json": {"images": [entry(sentences=sentences)]}})
    assert [name for _, name in rejects(made)] == [reason]
    assert [item.turns[1].parts[0] for item in conversations(made)] == ["A cat.", "Two  cats ."]
    if reason != "duplicate_id":
        assert conversations(made)[0].references == ("A cat.", "Two  cats .")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"caption": "A cat."}, "missing_key"),
        ({"image_id": True, "caption": "A cat."}, "wrong_type"),
        ({"image_id": "", "caption": "A cat."}, "bad_value"),
        ({"image_id": "\ud800", "caption": "A cat."}, "bad_text"),
        ({"image_id": "1"}, "missing_key"),
        ({"image_id": "1", "caption": ""}, "empty_answer"),
        ({"image_id": 2, "caption": "Twice."}, "duplicate_id"),
        ([], "wrong_type"),
    ],
)
def test_a_bad_aligned_record_is_refused_with_its_reason(tmp_path: Path, record: Any, reason: str) -> None:
    good = {"image_id": "2", "caption": "A flower."}
    made = adapted("minigpt4", tmp_path, {"filter_cap.json": {"annotations": [good, record]}})
    assert [name for _, name in rejects(made)] == [reason]
    assert len(conversations(made)) == 1
