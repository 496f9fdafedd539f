"""LLaVA's records: where the image is, which turns stay, and why a record is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation import Conversation, Image, RecordSource, Reject, Turn
from tests.support.adapting import Made, adapted, conversations, rejects, request_for
from tests.support.paths import EXAMPLES


def talk(*values: str, image: Any = "1.jpg", **more: Any) -> dict[str, Any]:
    turns = [{"from": "gpt" if index % 2 else "human", "value": value} for index, value in enumerate(values)]
    return {"id": "a", "conversations": turns, **({} if image is None else {"image": image}), **more}


def read(root: Path, *records: Any, **options: Any) -> Made:
    return adapted("llava", root, {"merged.json": list(records)}, **options)


def only(made: Made) -> Conversation:
    (item,) = made
    assert isinstance(item, Conversation), item
    return item


def parts(item: Conversation) -> list[tuple[str | Image, ...]]:
    return [turn.parts for turn in item.turns]


def test_the_sample_is_read_as_its_authors_meant_it() -> None:
    made = list(ADAPTERS["llava"].read(request_for("llava", EXAMPLES)))
    assert [item.id for item in conversations(made)] == [
        "detail_23k/000000000101",
        "detail_23k/000000000102",
        "detail_23k/000000000103",
        "complex_reasoning_77k/000000000105",
        "complex_reasoning_77k/000000000104",
        "complex_reasoning_77k/000000000106",
    ]
    assert made[1] == Conversation(
        id="detail_23k/000000000102",
        turns=(
            Turn(role="user", parts=(Image(name="000000000102.jpg"), "What does the picture show?")),
            Turn(
                role="assistant",
                parts=(
                    "One large blossom fills the frame. Its petals are pink with an orange heart, and the background "
                    "is a soft green blur.",
                ),
            ),
        ),
        sources=(RecordSource(file="llava/detail_23k.json", record="000000000102"),),
        groups=("coco:102",),
    )


def test_a_dialogue_keeps_every_round_and_a_trailing_image_trails() -> None:
    first = conversations(list(ADAPTERS["llava_dial"].read(request_for("llava_dial", EXAMPLES))))[0]
    assert parts(first) == [
        ("What animal is this?", Image(name="000000000103.jpg")),
        ("It is a cat.",),
        ("Which colour are its whiskers?",),
        ("They are white.",),
        ("Does it look at us?",),
        ("No, it looks past the camera.",),
    ]
    assert first.groups == ("coco:103",)


ONE, TWO = Image(name="1.jpg"), Image(name="2.jpg")


@pytest.mark.parametrize(
    ("question", "image", "expected"),
    [
        ("<image>\nWhat?", "1.jpg", (ONE, "What?")),
        ("What?\n<image>", "1.jpg", ("What?", ONE)),
        ("<image>\r\nWhat?", "1.jpg", (ONE, "What?")),
        ("  <image> What?\n\nNow.\n", "1.jpg", (ONE, "What?\n\nNow.")),
        ("<image>", "1.jpg", (ONE,)),
        ("<image>\n<image>\nWhich?", ["1.jpg", "2.jpg"], (ONE, TWO, "Which?")),
        ("Is <image> as old as <image>?", ["1.jpg", "2.jpg"], ("Is ", ONE, " as old as ", TWO, "?")),
        ("First:\n<image>\nSecond:\n<image>", ["1.jpg", "2.jpg"], ("First:", ONE, "Second:", TWO)),
    ],
)
def test_an_image_is_where_its_mark_was(
    tmp_path: Path, question: str, image: Any, expected: tuple[str | Image, ...]
) -> None:
    item = only(read(tmp_path, talk(question, "That.", image=image)))
    assert item.turns[0].parts == expected
    assert item.notes == ()


def test_an_image_without_a_mark_leads_the_first_question(tmp_path: Path) -> None:
    item = only(read(tmp_path, talk("What?", "That.", "Why?", "So.", image=["1.jpg", "2.jpg"])))
    assert parts(item) == [(ONE, TWO, "What?"), ("That.",), ("Why?",), ("So.",)]
    assert item.notes == ("image_placed_first",)


def test_later_marks_take_the_remaining_images_in_order(tmp_path: Path) -> None:
    item = only(read(tmp_path, talk("<image>\nWhat?", "That.", "And <image>?", "This.", image=["1.jpg", "2.jpg"])))
    assert parts(item) == [(ONE, "What?"), ("That.",), ("And ", TWO, "?"), ("This.",)]


def test_a_marker_in_an_answer_or_without_an_image_is_refused_or_on_request_only_a_word(tmp_path: Path) -> None:
    records = [talk("<image>\nWhat?", "Write <image>."), talk("What is <image>?", "A mark.", image=None, id="b")]
    assert rejects(read(tmp_path, *records)) == [("a", "image_in_answer"), ("b", "image_count")]
    shown, bare = conversations(read(tmp_path, *records, media_tags="text"))
    assert parts(shown) == [(ONE, "What?"), ("Write <image>.",)]
    assert parts(bare) == [("What is <image>?",), ("A mark.",)]
    assert bare.groups == ()


def test_an_answer_before_the_first_question_is_left_out_with_a_note(tmp_path: Path) -> None:
    record = talk("Hello!", "<image>\nWhat?", "That.")
    for turn, name in zip(record["conversations"], ("gpt", "human", "gpt"), strict=True):
        turn["from"] = name
    item = only(read(tmp_path, record))
    assert parts(item) == [(ONE, "What?"), ("That.",)]
    assert item.notes == ("leading_answer",)


def test_a_question_that_nobody_answers_is_cut_with_a_note(tmp_path: Path) -> None:
    item = only(read(tmp_path, talk("<image>\nWhat?", "That.", "And?")))
    assert parts(item) == [(ONE, "What?"), ("That.",)]
    assert item.notes == ("dangling_question",)


def test_a_system_turn_may_lead(tmp_path: Path) -> None:
    record = talk("<image>\nWhat?", "That.")
    record["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    assert [turn.role for turn in only(read(tmp_path, record)).turns] == ["system", "user", "assistant"]


def test_the_words_stay_as_they_are(tmp_path: Path) -> None:
    answer = "NASA  said:\n\n\tno MCDONALD'S</s> ### Image 1:\n"
    assert only(read(tmp_path, talk("<image>\nwhat ?", answer))).turns[1].parts == (answer.strip(),)


REFUSED = [
    ([], "wrong_type"),
    ("text", "wrong_type"),
    (None, "wrong_type"),
    ({"id": "a"}, "missing_key"),
    ({"id": "a", "conversations": {}}, "wrong_type"),
    ({"id": "a", "conversations": []}, "no_answer"),
    ({"id": "a", "conversations": [3]}, "wrong_type"),
    ({"id": "a", "conversations": [{"from": "human"}]}, "missing_key"),
    ({"id": "a", "conversations": [{"value": "What?"}]}, "missing_key"),
    ({"id": "a", "conversations": [{"from": "human", "value": "What?"}]}, "no_answer"),
    ({"id": "a", "conversations": [{"from": "gpt", "value": "That."}]}, "no_answer"),
    ({"id": "a", "conversations": [{"from": "tool", "value": "That."}]}, "role_order"),
    ({"id": "a", "conversations": [{"from": "nobody", "value": "That."}]}, "role_order"),
    ({"id": "a", "conversations": [{"from": True, "value": "That."}]}, "wrong_type"),
    ({"id": "a", "conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}]}, "no_answer"),
    (talk("<image>\nWhat?", ""), "empty_answer"),
    (talk("<image>\nWhat?", " \n "), "empty_answer"),
    (talk("  ", "That.", image=None), "empty_question"),
    (talk("<image>\nWhat?", "bad \ud800"), "bad_text"),
    (talk("bad \udfff<image>", "That."), "bad_text"),
    (talk("<image> <image>", "That."), "image_count"),
    (talk("<image>", "That.", image=["1.jpg", "2.jpg"]), "image_count"),
    (talk("<image>", "That.", image=3), "wrong_type"),
    (talk("<image>", "That.", image=True), "wrong_type"),
    (talk("<image>", "That.", image=""), "image_path"),
    (talk("<image>", "That.", image="ftp://example.org/1.jpg"), "image_path"),
    (talk("<image>", "That.", image="\ud800.jpg"), "bad_text"),
    (talk("<image>", "That.", image=[None]), "wrong_type"),
]


@pytest.mark.parametrize(("record", "reason"), REFUSED)
def test_a_record_that_cannot_be_used_is_refused_with_its_reason(tmp_path: Path, record: Any, reason: str) -> None:
    made = read(tmp_path, record, talk("<image>", "Fine.", id="b"))
    assert [name for _, name in rejects(made)] == [reason]
    assert [item.id for item in conversations(made)] == ["merged/b"]


@pytest.mark.parametrize("value", [None, True, 3, 1.5, float("nan"), [3], {}])
def test_an_answer_of_another_type_is_refused(tmp_path: Path, value: Any) -> None:
    record = talk("<image>", "That.")
    record["conversations"][1]["value"] = value
    assert rejects(read(tmp_path, record)) == [("a", "wrong_type")]


def test_too_many_images_are_refused_with_what_was_got_and_expected(tmp_path: Path) -> None:
    (item,) = read(tmp_path, talk("What?", "That.", image=["1.jpg"] * 3), max_images=2)
    assert isinstance(item, Reject)
    assert item.reason == "too_many_images"
    assert item.detail == "got 3 images, expected at most 2; raise limits.max_images to keep the record"


def test_a_repeated_id_is_refused_unless_it_is_to_be_kept(tmp_path: Path) -> None:
    records = [talk("<image>", "One."), talk("<image>", ""), talk("<image>", "Two."), talk("<image>", "Three.")]
    assert rejects(read(tmp_path, *records)) == [("a", "empty_answer"), ("a", "duplicate_id"), ("a", "duplicate_id")]
    kept = conversations(read(tmp_path, *records, duplicate_ids="keep"))
    assert [item.id for item in kept] == ["merged/a", "merged/a#2", "merged/a#3"]
    assert {item.sources[0].record for item in kept} == {"a"}


def test_a_kept_id_never_takes_the_place_of_another(tmp_path: Path) -> None:
    records = [talk("<image>", str(number), id=name) for number, name in enumerate(["a#1", "a", "a", "a#2", "a#2#3"])]
    kept = conversations(read(tmp_path, *records, duplicate_ids="keep"))
    assert len({item.id for item in kept}) == 5


def test_a_record_without_an_id_is_known_by_its_number(tmp_path: Path) -> None:
    names: tuple[Any, ...] = ("1", None, 7, "", {}, "\ud800")
    records = [talk("<image>", "One.", id=name) for name in names]
    made = conversations(read(tmp_path, *records))
    assert [item.sources[0].record for item in made] == ["1", "1", "7", "3", "4", "5"]
    assert [item.id for item in made] == ["merged/1", "merged/#1", "merged/7", "merged/#3", "merged/#4", "merged/#5"]


def test_files_of_the_same_name_keep_their_ids_apart(tmp_path: Path) -> None:
    made = adapted("llava", tmp_path, {name: [talk("<image>", "One.")] for name in ("x/a.json", "y/a.json", "b.json")})
    assert [item.id for item in conversations(made)] == ["x/a/a", "y/a/a", "b/a"]
