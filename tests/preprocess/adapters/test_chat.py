"""One's own conversations: images by path, by URL and inside the record, their groups, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preprocess.conversation import Conversation, Image, RecordSource, Reject, Turn, embedded_name
from tests.support.adapting import CHAT, adapted, conversations, rejects
from tests.support.chat_records import ONE, TWO, only, read_chat, talk


def test_both_forms_are_read_with_group_and_split(tmp_path: Path) -> None:
    made = conversations(adapted("chat", tmp_path, CHAT, images=(".",)))
    assert made[0] == Conversation(
        id="talk/a",
        turns=(
            Turn(role="system", parts=("Be brief.",)),
            Turn(role="user", parts=(Image(name="cats/1.jpg"), "Who is this?")),
            Turn(role="assistant", parts=("A cat.",)),
            Turn(role="user", parts=("And", TWO)),
            Turn(role="assistant", parts=("A dog.",)),
        ),
        sources=(RecordSource(file="talk.json", record="a"),),
        groups=("cats/1.jpg", f"{tmp_path.name}/2.jpg", "group:film 7"),
        official_split="val",
    )
    assert (made[1].id, made[1].groups) == ("talk/2", ())
    assert made[2].turns[0].parts == (Image(name="3.jpg"), Image(name="4.jpg"), "Compare.")
    assert (made[2].id, made[2].notes) == ("talk/#2", ("image_placed_first",))


@pytest.mark.parametrize(
    ("content", "images", "expected"),
    [
        ([{"type": "text", "text": " What? "}, {"type": "image"}], ["1.jpg"], ("What?", ONE)),
        ([{"type": "image", "image": "2.jpg"}, {"type": "text", "text": "What?"}], None, (TWO, "What?")),
        ([{"type": "image", "path": "2.jpg"}, {"type": "image"}], ["1.jpg"], (TWO, ONE)),
        ([{"type": "image", "url": "2.jpg", "image": None}], [], (TWO,)),
        ([{"type": "image_url", "image_url": {"url": "2.jpg"}}], None, (TWO,)),
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], None, ("a b",)),
        ([{"type": "text", "text": "What is <image>?"}], ["1.jpg"], ("What is ", ONE, "?")),
        ([{"type": "image_url", "image_url": "2.jpg"}], None, (TWO,)),
        ([{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "2.jpg"}], None, ("a", TWO)),
        ([{"image": "2.jpg"}, {"text": "What?"}], None, (TWO, "What?")),
        ([{"type": "image", "index": 1}, {"type": "image", "index": 0}], ["1.jpg", "2.jpg"], (TWO, ONE)),
        ([{"type": "image", "image": "1.jpg"}, {"type": "text", "text": "What?"}], ["1.jpg"], (ONE, "What?")),
        ("<image>What?<image>", ["1.jpg", {"path": "2.jpg"}], (ONE, "What?", TWO)),
    ],
)
def test_parts_and_marks_become_images_in_order(
    tmp_path: Path, content: Any, images: Any, expected: tuple[str | Image, ...]
) -> None:
    assert only(read_chat(tmp_path, talk(content, images=images))).turns[0].parts == expected


WORDS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "tool", "content": "c"}]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("text", "wrong_type"),
        ([], "wrong_type"),
        ({}, "missing_key"),
        ({"messages": None}, "missing_key"),
        ({"messages": {}}, "wrong_type"),
        ({"messages": []}, "no_answer"),
        ({"messages": [{"role": "user"}]}, "missing_key"),
        ({"messages": [{"content": "a"}]}, "missing_key"),
        ({"messages": [WORDS[0], WORDS[2], WORDS[1]]}, "role_order"),
        ({"messages": WORDS[1:2]}, "no_answer"),
        ({"messages": WORDS[:1]}, "no_answer"),
        (talk(answer=None), "wrong_type"),
        (talk(answer=""), "empty_answer"),
        (talk(answer="\ud800"), "bad_text"),
        (talk(answer=[{"type": "text", "text": "\ud800"}]), "bad_text"),
        (talk(answer=[{"type": "image"}]), "image_in_answer"),
        (talk(answer=[{"type": "image_url", "image_url": {"url": "1.jpg"}}]), "image_in_answer"),
        (talk([], images=None), "empty_question"),
        (talk([3]), "wrong_type"),
        (talk([{"text": "a", "image": "1.jpg"}]), "missing_key"),
        (talk([{"type": "video"}]), "unread_media"),
        (talk([{"type": "thinking", "text": "a"}]), "bad_value"),
        (talk([{"type": "text", "text": 3}]), "wrong_type"),
        (talk([{"type": "image_url", "image_url": 7}]), "wrong_type"),
        (talk([{"type": "image", "image": 3}]), "wrong_type"),
        (talk("<image><image>"), "image_count"),
        (talk([{"type": "image", "image": "2.jpg"}]), "image_count"),
        (talk([{"type": "image", "image": "s3://bucket/1.jpg"}], images=None), "image_path"),
        (talk([{"type": "image_url", "image_url": {"url": "data:image/png,AAAA"}}], images=None), "image_unreadable"),
        (
            talk([{"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}], images=None),
            "image_unreadable",
        ),
        (talk(images=["ftp://example.org/1.jpg"]), "image_path"),
        (talk(images=[""]), "image_path"),
        (talk(images=[None]), "wrong_type"),
        (talk(images=[{}]), "wrong_type"),
        (talk(images=7), "wrong_type"),
        (talk(image="2.jpg"), "bad_value"),
        (talk(group=1.5), "wrong_type"),
        (talk(split="holdout"), "bad_value"),
        (talk(split=True), "wrong_type"),
        (talk(images=["1.jpg"] * 9, question="What?"), "too_many_images"),
    ],
)
def test_a_bad_record_is_refused_with_its_reason(tmp_path: Path, record: Any, reason: str) -> None:
    made = read_chat(tmp_path, record, talk("Fine?", "Fine.", images=None, id="b"))
    assert [name for _, name in rejects(made)] == [reason]
    assert conversations(made)[-1].id == "a/b"


@pytest.mark.parametrize("url", ["https://example.org/a/000000000101.jpg?w=9", "HTTP://example.org/1"])
def test_an_http_url_is_the_name_of_an_image(tmp_path: Path, url: str) -> None:
    (item,) = conversations(read_chat(tmp_path, talk(images=[url])))
    assert item.images == (Image(name=url),)


def test_another_url_is_refused_with_the_next_step(tmp_path: Path) -> None:
    (item,) = read_chat(tmp_path, talk(images=["ftp://example.org/1.jpg"]))
    assert isinstance(item, Reject)
    assert "download it first" in item.detail


def test_bytes_as_base64_text_are_an_image_in_any_file(tmp_path: Path) -> None:
    (item,) = conversations(read_chat(tmp_path, talk(images=[{"bytes": "aGVsbG8="}])))
    assert item.images == (Image(name=embedded_name(b"hello")),)


def test_a_file_named_from_two_folders_has_a_group_in_common(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    records = [talk(images=[name]) for name in ("a.jpg", "images/a.jpg", "./a.jpg", "b.jpg", "cats/a.jpg")]
    made = conversations(adapted("chat", tmp_path, {"a.json": records}))
    bare, below, dotted, other, cats = [{*item.groups} for item in made]
    assert bare == dotted == {f"{tmp_path.name}/a.jpg", "images/a.jpg"}
    assert below == {"images/a.jpg"}
    assert not (other | cats) & (bare | below)
    # Another dataset that knows only one of the folders.
    alone = conversations(adapted("chat", tmp_path / "images", {"b.json": [talk(images=["a.jpg"])]}))
    assert {*alone[0].groups} == below


def test_repeated_ids_are_refused_or_kept(tmp_path: Path) -> None:
    assert rejects(read_chat(tmp_path, talk(id="x"), talk(id="x"))) == [("x", "duplicate_id")]
    assert [
        item.id for item in conversations(read_chat(tmp_path, talk(id="x"), talk(id="x"), duplicate_ids="keep"))
    ] == [
        "a/x",
        "a/x#1",
    ]
