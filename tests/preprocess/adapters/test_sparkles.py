"""Sparkles dialogues: images at their marks, numbered mentions, and dialogues that do not add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation import Conversation, Image, RecordSource
from tests.support.adapting import adapted, conversations, rejects, request_for
from tests.support.paths import EXAMPLES

MARK = "<Img><ImageHere></Img>"


def talk(*turns: tuple[str, list[Any]] | str) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for index, turn in enumerate(turns):
        words, ids = turn if isinstance(turn, tuple) else (turn, None)
        message: dict[str, Any] = {"role": "assistant" if index % 2 else "user", "content": words}
        messages.append(message if ids is None else {**message, "images": [{"image_id": each} for each in ids]})
    return {"dialogue": messages}


def only(root: Path, record: Any) -> Conversation:
    (item,) = adapted("sparkles_dialogue", root, {"a.json": [record]}, images=(".",))
    assert isinstance(item, Conversation), item
    return item


def texts(root: Path, *turns: tuple[str, list[Any]] | str) -> list[str]:
    return list(only(root, talk(*turns)).texts)


def test_the_samples_show_their_images_and_number_them_through_the_dialogue() -> None:
    made = conversations(list(ADAPTERS["sparkles_dialogue"].read(request_for("sparkles_dialogue", EXAMPLES))))
    assert [item.id for item in made] == [
        "SparklesDialogueCC/0",
        "SparklesDialogueCC/1",
        "SparklesDialogueVG/0",
        "SparklesDialogueVG/1",
    ]
    first, second = Image(name="1001.jpg", store=0), Image(name="1002.jpg", store=0)
    assert made[0].turns[0].parts == (first, second, "How could image 1 and image 2 belong to one morning?")
    assert made[0].turns[2].parts == (Image(name="1003.jpg", store=0), "And would image 3 fit in?")
    assert made[0].texts[1].startswith("Someone may drink the coffee of image 2 while the cat of image 1")
    assert made[2].turns[1].parts == ("image 2, since grass is softer than brick.",)
    assert {image.store for image in made[2].images} == {1}
    assert made[0].groups == ("images/1001.jpg", "images/1002.jpg", "images/1003.jpg")
    assert made[3].sources == (RecordSource(file="SparklesDialogueVG/annotations/SparklesDialogueVG.json", record="1"),)


def test_integer_and_text_ids_are_the_same(tmp_path: Path) -> None:
    assert texts(tmp_path, (f"See IMAGE#7{MARK}.", ["7"]), "IMAGE#7 it is.") == ["See image 1.", "image 1 it is."]


def test_an_id_that_begins_another_is_not_taken_for_it(tmp_path: Path) -> None:
    turns = ((f"IMAGE#12{MARK} IMAGE#123{MARK} IMAGE#1{MARK}", [12, 123, 1]), "IMAGE#123, IMAGE#12 and IMAGE#1.")
    assert texts(tmp_path, *turns) == ["image 1 image 2 image 3", "image 2, image 1 and image 3."]
    record = talk((f"IMAGE#12{MARK}", [12]), "IMAGE#123 is unknown.")
    assert rejects(adapted("sparkles_dialogue", tmp_path, {"a.json": [record]})) == [("0", "image_mention")]


def test_an_id_with_letters_is_found_before_a_full_stop(tmp_path: Path) -> None:
    assert texts(tmp_path, (f"IMAGE#a1{MARK}?", ["a1"]), "IMAGE#a1.") == ["image 1?", "image 1."]


def test_images_come_in_the_order_of_the_list_and_words_keep_their_place(tmp_path: Path) -> None:
    item = only(tmp_path, talk((f"Is IMAGE#2{MARK} newer than IMAGE#1{MARK}?", [1, 2]), "IMAGE#2 is."))
    assert item.turns[0].parts == (
        Image(name="1.jpg", store=0),
        Image(name="2.jpg", store=0),
        "Is image 2 newer than image 1?",
    )
    assert item.turns[1].parts == ("image 2 is.",)


def test_an_image_shown_twice_has_two_numbers_and_is_cited_by_its_first(tmp_path: Path) -> None:
    turns = (
        (f"IMAGE#5{MARK}", [5]),
        "Seen.",
        (f"Again IMAGE#5{MARK} and IMAGE#6{MARK}", [5, 6]),
        "IMAGE#5 and IMAGE#6.",
    )
    assert texts(tmp_path, *turns) == ["image 1", "Seen.", "Again image 2 and image 3", "image 1 and image 3."]
    assert texts(tmp_path, (f"IMAGE#5{MARK} IMAGE#5{MARK}", [5, 5]), "Same.")[0] == "image 1 image 2"


def test_a_written_out_line_break_becomes_one_and_is_noted(tmp_path: Path) -> None:
    item = only(tmp_path, talk("Hello", "One.\\n\\nTwo.\nThree.\\n"))
    assert item.texts == ("Hello", "One.\n\nTwo.\nThree.")
    assert item.notes == ("literal_newline",)


def test_a_question_without_an_answer_is_cut_with_its_images(tmp_path: Path) -> None:
    item = only(tmp_path, talk("Hello", "Hello.", (f"IMAGE#5{MARK}", [5])))
    assert (item.images, item.notes, len(item.turns)) == ((), ("dangling_question",), 2)


def test_the_folder_next_to_a_file_is_its_store_and_else_the_one_in_its_place(tmp_path: Path) -> None:
    record = [talk((f"IMAGE#5{MARK}", [5]), "Seen.")]
    for name in ("A/images", "B/images", "C"):
        (tmp_path / name).mkdir(parents=True)
    files = {"A/annotations/a.json": record, "B/annotations/b.json": record}
    for images, stores in ((("B/images", "A/images"), [1, 0]), (("C", "A"), [0, 1]), (("C",), [None, None])):
        made = conversations(adapted("sparkles_dialogue", tmp_path, files, images=images))
        assert [item.images[0].store for item in made] == stores


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (3, "wrong_type"),
        ({}, "missing_key"),
        ({"dialogue": "a"}, "wrong_type"),
        ({"dialogue": []}, "no_answer"),
        ({"dialogue": [3]}, "wrong_type"),
        ({"dialogue": [{"role": "user"}, {"role": "assistant", "content": "a"}]}, "missing_key"),
        ({"dialogue": [{"content": "a"}]}, "missing_key"),
        ({"dialogue": [{"role": "assistant", "content": "a"}]}, "role_order"),
        ({"dialogue": [{"role": "bot", "content": "a"}]}, "role_order"),
        (talk("Hello"), "no_answer"),
        (talk("", "Hello."), "empty_question"),
        (talk("Hello", " "), "empty_answer"),
        (talk("Hello", "\ud800"), "bad_text"),
        (talk(("See", [5]), "a"), "image_count"),
        (talk(f"IMAGE#5{MARK}", "a"), "image_count"),
        (talk((f"IMAGE#5{MARK}", [6]), "a"), "image_count"),
        (talk((f"IMAGE#5{MARK} {MARK}", [5]), "a"), "image_count"),
        (talk((f"IMAGE#5{MARK} IMAGE#5{MARK}", [5, 6]), "a"), "image_count"),
        (talk("Hello", (f"IMAGE#5{MARK}", [5])), "image_count"),
        (talk("IMAGE#5?", "a"), "image_mention"),
        (talk("Hello", "IMAGE#5", (f"IMAGE#5{MARK}", [5]), "a"), "image_mention"),
        (talk((f"IMAGE#5{MARK}", [5]), "An IMAGE# alone"), "image_mention"),
        (talk((f"IMAGE#5{MARK}", [True]), "a"), "wrong_type"),
        (talk((f"IMAGE#5{MARK}", [""]), "a"), "bad_value"),
        (talk((f"IMAGE#5{MARK}" * 9, [5] * 9), "a"), "too_many_images"),
    ],
)
def test_a_dialogue_that_does_not_add_up_is_refused_with_its_reason(tmp_path: Path, record: Any, reason: str) -> None:
    made = adapted("sparkles_dialogue", tmp_path, {"a.json": [record, talk("Hello", "Hello.")]})
    assert rejects(made) == [("0", reason)]
    assert [item.id for item in conversations(made)] == ["a/1"]
