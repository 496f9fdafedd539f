"""MIMIC-IT's parts and their blend with LLaVA: which rounds go together, which images are shown, what is refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.adapters.datasets.mimicit import image_group_of
from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation import Conversation, Image, RecordSource, Reject
from preprocess.errors import DataError
from tests.support.adapting import Made, adapted, conversations, rejects, request_for, sample
from tests.support.paths import EXAMPLES

CGD = "MIMIC-IT/CGD_instructions.json"


def round_of(*related: str, images: Any = ("x",), **changed: Any) -> dict[str, Any]:
    whole = {"instruction": "What?", "answer": "That.", "image_ids": list(images or ()), "rel_ins_ids": list(related)}
    return {**whole, **changed}


def read(root: Path, data: Any, name: str = "otter_mimicit_vst", **options: Any) -> Made:
    return adapted(name, root, {"XX_instructions.json": {"meta": {}, "data": data}}, **options)


def sets(made: Made) -> list[list[str]]:
    return [[source.record for source in item.sources] for item in conversations(made)]


def test_related_instructions_are_the_rounds_of_one_conversation() -> None:
    made = conversations(list(ADAPTERS["otter_mimicit_sd"].read(request_for("otter_mimicit_sd", EXAMPLES))))
    assert [item.id for item in made] == [f"SD_instructions/SD_INS_00000{number}" for number in (1, 2, 4)]
    second = made[1]
    images = (Image(name="SD_IMG_000003"), Image(name="SD_IMG_000004"))
    assert [turn.parts for turn in second.turns] == [
        (*images, "What is new in the second frame?"),
        ("A man with a tripod; the clock is gone.",),
        ("Is the clock sharp?",),
        ("No, it is blurred by motion.",),
    ]
    file = "MIMIC-IT/SD_instructions.json"
    assert second.sources == (
        RecordSource(file=file, record="SD_INS_000002"),
        RecordSource(file=file, record="SD_INS_000003"),
    )
    assert second.groups == ("SD_IMG_000003", "SD_IMG_000004")


def test_pairs_of_coco_images_are_named_and_grouped_as_coco_does(tmp_path: Path) -> None:
    first = conversations(list(ADAPTERS["otter_mimicit_cgd"].read(request_for("otter_mimicit_cgd", EXAMPLES))))[0]
    assert [image.name for image in first.images] == ["000000000103.jpg", "000000000104.jpg"]
    assert first.groups == ("coco:103", "coco:104")
    data = {"a": round_of(images=["CGD_IMG_000000000103"]), "b": round_of(images=["CGD_IMG_x"])}
    assert rejects(read(tmp_path, data, "otter_mimicit_cgd")) == [("b", "bad_value")]


def test_a_base64_archive_of_pairs_is_asked_for_its_own_keys(tmp_path: Path) -> None:
    documents = {CGD: sample("otter_mimicit_cgd")[CGD], "MIMIC-IT/CGD.json": {}}
    first = conversations(adapted("otter_mimicit_cgd", tmp_path, documents, annotations=(CGD,)))[0]
    assert [image.name for image in first.images] == ["CGD_IMG_000000000103", "CGD_IMG_000000000104"]
    assert first.groups == ("coco:103", "coco:104")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"a": round_of("b"), "b": round_of()}, [["a", "b"]]),
        ({"a": round_of(), "b": round_of("a")}, [["a", "b"]]),
        ({"a": round_of("c"), "b": round_of(), "c": round_of("a")}, [["a", "c"], ["b"]]),
        ({"a": round_of("b"), "b": round_of("c"), "c": round_of()}, [["a", "b", "c"]]),
        ({"a": round_of("b"), "b": round_of("a", images=["y"])}, [["a"], ["b"]]),
        ({"a": round_of("b", images=["x", "y"]), "b": round_of("a", images=["y", "x"])}, [["a"], ["b"]]),
        ({"a": round_of("gone", "a"), "b": round_of("gone")}, [["a"], ["b"]]),
        ({"a": round_of("b", images=None), "b": round_of(images=None)}, [["a", "b"]]),
    ],
)
def test_only_instructions_that_name_each_other_and_share_images_merge(
    tmp_path: Path, data: dict[str, Any], expected: list[list[str]]
) -> None:
    assert sets(read(tmp_path, data)) == expected


def test_a_bad_instruction_is_refused_alone_and_the_rest_still_merges(tmp_path: Path) -> None:
    data = {"a": round_of("b", answer=""), "b": round_of("a", "c"), "c": round_of("a"), "d": round_of("a")}
    made = read(tmp_path, data)
    assert rejects(made) == [("a", "empty_answer")]
    assert sets(made) == [["b", "c", "d"]]
    assert conversations(made)[0].id == "XX_instructions/b"


@given(seed=st.integers(0, 10**6))
def test_merging_agrees_with_a_search_from_each_instruction(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    choices = random.Random(seed)
    names = [str(number) for number in range(12)]
    data = {
        name: round_of(*choices.sample(names, choices.randint(0, 2)), images=choices.choice([["x"], ["y"]]))
        for name in names
    }
    expected: list[list[str]] = []
    for name in names:
        reached = [name]
        for instruction in reached:
            for other in names:
                linked = other in data[instruction]["rel_ins_ids"] or instruction in data[other]["rel_ins_ids"]
                if linked and data[instruction]["image_ids"] == data[other]["image_ids"] and other not in reached:
                    reached.append(other)
        if not any(name in found for found in expected):
            expected.append(sorted(reached, key=names.index))
    assert sets(read(tmp_path_factory.mktemp("merge"), data)) == expected


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, [0]), (2, [0, 9]), (3, [0, 4, 9]), (4, [0, 3, 6, 9]), (10, list(range(10)))]
)
def test_frames_are_refused_or_thinned_evenly_with_the_ends_kept(
    tmp_path: Path, limit: int, expected: list[int]
) -> None:
    data = {"a": round_of(images=[f"VST_IMG_{number}" for number in range(10)])}
    cut = limit < 10
    assert rejects(read(tmp_path, data, max_images=limit)) == ([("a", "too_many_images")] if cut else [])
    (item,) = conversations(read(tmp_path, data, max_images=limit, frames="even"))
    assert [image.name for image in item.images] == [f"VST_IMG_{number}" for number in expected]
    assert item.notes == (("frames_cut",) if cut else ())


@pytest.mark.parametrize(
    ("image_id", "group"),
    [
        ("TVC_IMG_castle_s01e02_00007", "TVC_IMG_castle_s01e02"),
        ("SN_IMG_scene0000_00_12", "SN_IMG_scene0000_00"),
        ("SD_IMG_000001", "SD_IMG_000001"),
        ("CGD_IMG_000000000103", "coco:103"),
        ("anything", "anything"),
    ],
)
def test_frames_of_one_video_share_a_group(image_id: str, group: str) -> None:
    assert image_group_of(image_id) == group


def test_a_file_without_the_key_data_and_instructions_without_images_are_read(tmp_path: Path) -> None:
    record = round_of()
    del record["image_ids"], record["rel_ins_ids"]
    made = adapted("otter_mimicit_tvc", tmp_path, {"a.json": {"t": record, "u": round_of(image_ids=None)}})
    assert sets(made) == [["t"], ["u"]]
    assert conversations(made)[0].images == ()
    assert conversations(made)[0].groups == ()
    with pytest.raises(DataError, match=r"a\.json"):
        adapted("otter_mimicit_tvc", tmp_path, {"a.json": {"data": [record]}})


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "wrong_type"),
        (round_of(instruction=""), "empty_question"),
        (round_of(instruction=None), "wrong_type"),
        (round_of(answer="\ud800"), "bad_text"),
        (round_of(answer=float("nan")), "wrong_type"),
        ({"answer": "That."}, "missing_key"),
        ({"instruction": "What?"}, "missing_key"),
        (round_of(image_ids="x"), "wrong_type"),
        (round_of(image_ids=[3]), "wrong_type"),
        (round_of(image_ids=["\ud800"]), "bad_text"),
        (round_of(rel_ins_ids="b"), "wrong_type"),
        (round_of(rel_ins_ids=[[]]), "wrong_type"),
        (round_of(image_ids=["x"] * 9), "too_many_images"),
    ],
)
def test_a_bad_instruction_is_refused_with_its_reason(tmp_path: Path, record: Any, reason: str) -> None:
    made = read(tmp_path, {"a": record, "b": round_of()})
    assert rejects(made) == [("a", reason)]
    assert sets(made) == [["b"]]


def test_a_repeated_instruction_is_refused_or_kept(tmp_path: Path) -> None:
    text = '{"data": {"a": {"instruction": "1", "answer": "2"}, "a": {"instruction": "3", "answer": "4"}}}'
    assert rejects(adapted("otter_mimicit_sn", tmp_path, {"a.json": text})) == [("a", "duplicate_id")]
    kept = conversations(adapted("otter_mimicit_sn", tmp_path, {"a.json": text}, duplicate_ids="keep"))
    assert [item.id for item in kept] == ["a/a", "a/a#1"]


def blended(root: Path, drop: tuple[str, ...] = (), seed: int = 0, changed: dict[str, Any] | None = None) -> Made:
    documents = {**sample("llava_otter_blend"), **(changed or {})}
    for file, records in documents.items():
        if isinstance(records, list):
            documents[file] = [item for item in records if not isinstance(item, dict) or item.get("image") not in drop]
    return adapted("llava_otter_blend", root, documents, seed=seed)


def test_llavas_rounds_about_each_image_come_before_the_rounds_about_the_pair(tmp_path: Path) -> None:
    made = blended(tmp_path)
    assert rejects(made) == [("CGD_INS_000030", "no_match")]
    item = conversations(made)[1]
    assert item.id == "CGD_instructions/CGD_INS_000010"
    assert [image.name for image in item.images] == ["000000000101.jpg", "000000000102.jpg"]
    assert item.turns[-4].parts == (Image(name="000000000102.jpg"), "What does the picture show?")
    assert item.turns[-2].parts == ("Are both pictures taken outdoors?",)
    assert item.groups == ("coco:101", "coco:102")
    assert {source.file for source in item.sources} == {CGD}


def test_the_choice_among_llavas_records_is_the_seeds_alone(tmp_path: Path) -> None:
    assert blended(tmp_path) == blended(tmp_path)
    firsts = {str(conversations(blended(tmp_path, seed=seed))[0].turns[0].parts) for seed in range(20)}
    assert len(firsts) == 2  # image 103 is in detail_23k and in conversation_58k


def test_the_last_image_alone_may_lack_rounds_and_is_then_shown_with_the_pair(tmp_path: Path) -> None:
    item = conversations(blended(tmp_path, drop=("000000000104.jpg",)))[0]
    turn = next(turn for turn in item.turns if turn.parts[-1] == "What is the main difference between the two photos?")
    assert turn.parts[0] == Image(name="000000000104.jpg")
    assert [image.name for image in item.images] == ["000000000103.jpg", "000000000104.jpg"]
    refused = blended(tmp_path, drop=("000000000103.jpg",))
    assert rejects(refused)[:3] == [(f"CGD_INS_00000{number}", "no_match") for number in (1, 2, 3)]


def test_a_malformed_llava_record_is_refused_and_shown(tmp_path: Path) -> None:
    file = "llava/detail_23k.json"
    records = [*sample("llava_otter_blend")[file], {"id": "bad", "image": "000000000101.jpg"}, 3]
    made = blended(tmp_path, changed={file: records})
    assert [(item.source.file, item.reason) for item in made if isinstance(item, Reject)][:2] == [
        (file, "missing_key"),
        (file, "wrong_type"),
    ]
    assert sum(isinstance(item, Conversation) for item in made) == 3


def test_one_side_of_the_blend_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got 0 LLaVA files"):
        adapted("llava_otter_blend", tmp_path, {CGD: {"data": {}}})
