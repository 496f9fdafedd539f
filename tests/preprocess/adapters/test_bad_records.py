"""Bad records through a whole build: each is a reject with its reason, and the good ones come out unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import shards
from preprocess.views.inspect import inspect_samples
from tests.support.bad_input import Bad, check, samples_of, talk
from tests.support.small_blends import (
    build,
    chat_blend,
    chat_record,
    write_images,
)

pytestmark = pytest.mark.usefixtures("no_hang")


def by(*roles: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "Words."} for role in roles]}


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


NONCHARACTERS = "".join(chr(code) for code in range(0xFDD0, 0xFDF0))

BAD_RECORDS: list[tuple[dict[str, Any], str]] = [
    ({}, "missing_key"),
    ({"messages": None}, "missing_key"),
    ({"messages": 5}, "wrong_type"),
    ({"messages": "Hello"}, "bad_value"),
    ({"messages": {}}, "wrong_type"),
    ({"messages": []}, "no_answer"),
    ({"messages": [5]}, "wrong_type"),
    ({"messages": [None]}, "wrong_type"),
    ({"messages": [{"content": "No role."}]}, "missing_key"),
    ({"messages": [{"role": "user"}]}, "missing_key"),
    ({"conversations": [{"from": "human", "words": "x"}]}, "missing_key"),
    ({"conversations": [{"role": "human", "value": "x"}]}, "no_answer"),
    ({"conversations": {"from": "human", "value": "x"}}, "wrong_type"),
    (by(5, "assistant"), "wrong_type"),
    (by("user", None), "wrong_type"),
    (by("user", "tool"), "role_order"),
    (by("Somebody", "Assistant"), "role_order"),
    (by("\ud800", "assistant"), "role_order"),
    (by("assistant", "user"), "no_answer"),
    (by("user", "assistant", "tool", "user", "assistant"), "role_order"),
    (by("user", "assistant", "assistant"), "role_order"),
    (by("user", "system", "assistant"), "role_order"),
    (by("system", "system", "user", "assistant"), "role_order"),
    (by("user"), "no_answer"),
    (by("system"), "no_answer"),
    (by("system", "user"), "no_answer"),
    (talk("Why?", ""), "empty_answer"),
    (talk("Why?", " \r\n\t\u3000\u00a0"), "empty_answer"),
    (talk("Why?", "So.", "And?", " "), "empty_answer"),
    (talk("Why?", []), "empty_answer"),
    (talk("Why?", [{"type": "text", "text": " "}]), "empty_answer"),
    (talk("", "An answer."), "empty_question"),
    (talk(" \n ", "An answer."), "empty_question"),
    (talk("Why?", None), "wrong_type"),
    (talk("Why?", 5), "wrong_type"),
    (talk("Why?", True), "wrong_type"),
    (talk("Why?", float("nan")), "wrong_type"),
    (talk("Why?", float("-inf")), "wrong_type"),
    (talk("Why?", 10**4000), "wrong_type"),
    (talk("Why?", {"text": "An answer."}), "wrong_type"),
    (talk("Why?", ["An answer."]), "wrong_type"),
    (talk("Why?", nested(400)), "wrong_type"),
    (talk("Why?", [{"words": "No type."}]), "missing_key"),
    (talk("Why?", [{"type": "text"}]), "missing_key"),
    (talk("Why?", [{"type": "text", "text": 5}]), "wrong_type"),
    (talk("Why?", [{"type": "image", "path": "0.jpg"}]), "image_in_answer"),
    (talk([{"type": "video", "path": "0.mp4"}], "An answer."), "unread_media"),
    (talk([{"type": 5}], "An answer."), "bad_value"),
    (talk([{"type": "image", "path": 5}], "An answer."), "wrong_type"),
    (talk([{"type": "image_url", "image_url": 5}], "An answer."), "wrong_type"),
    (talk("<video>\nWhy?", "An answer."), "unread_media"),
    (talk("Why?", "<image>"), "image_in_answer"),
    (talk("<image>\nWhy?", "An answer."), "image_count"),
    (talk("Why?", "An answer.", video="0.mp4"), "unknown_key"),
    (talk("Why?", "An answer.", rejected="Another."), "preference_pair"),
    (talk([{"type": "image_url", "image_url": {"url": "http://e.org/0.jpg"}}], "An answer."), "image_missing"),
    (talk("A lone \ud800 surrogate.", "An answer."), "bad_text"),
    (talk("Why?", "\udfff"), "bad_text"),
    (talk("Why?", [{"type": "text", "text": "\udc00"}]), "bad_text"),
    (talk("<image>", "An answer.", images=["\ud83d.jpg"]), "bad_text"),
    (talk("Why?", "An answer.", images=5), "wrong_type"),
    (talk("Why?", "An answer.", images=[None]), "wrong_type"),
    (talk("Why?", "An answer.", images=[["0.jpg"]]), "wrong_type"),
    (talk("Why?", "An answer.", images={}), "wrong_type"),
    (talk("Why?", "An answer.", image=float("nan")), "wrong_type"),
    (talk("Why?", "An answer.", image="0.jpg", images=["0.jpg"]), "bad_value"),
    (talk("<image><image>", "An answer.", images=["0.jpg"]), "image_count"),
    (talk("<image>", "An answer.", images=["0.jpg", "1.jpg"]), "image_count"),
    (talk([{"type": "image"}], "An answer."), "image_count"),
    (talk([{"type": "image", "path": "0.jpg"}], "An answer.", images=["1.jpg"]), "image_count"),
    (talk("<image>" * 9, "An answer.", images=["0.jpg"] * 9), "too_many_images"),
    (talk("Why?", "An answer.", group=["7"]), "wrong_type"),
    (talk("Why?", "An answer.", group=1.5), "wrong_type"),
    (talk("Why?", "An answer.", split=1), "wrong_type"),
    (talk("Why?", "An answer.", split="training and test"), "bad_value"),
    (talk("Why?", "An answer.", split="\ud800"), "bad_value"),
    (talk("Why?", "Long. " * 400_000), "too_long"),
    (talk("<image>" * 8, "An answer " * 4000, images=["0.jpg"] * 8), "too_long"),
    (talk(f"{NONCHARACTERS} </s>", "An answer."), "control_text"),
]

BAD_LINES: list[Bad] = [
    Bad(b'{"id": "x", "messages": [', "broken_json", "LINE, column 26: "),
    Bad(b'{"id": "x",}', "broken_json", "LINE, column 12: "),
    Bad(b"not JSON", "broken_json", "LINE, column 1: "),
    Bad(b"{'id': 1}", "broken_json", "LINE, column 2: "),
    Bad(b'{"id": 1} {"id": 2}', "broken_json", "LINE, column 11: Extra data"),
    Bad(b'{"id": "tab\there"}', "broken_json", "LINE, column 12: "),
    Bad(b'{"id": "\\ud8"}', "broken_json", "LINE, column "),
    Bad(b'\xef\xbb\xbf{"id": 1}', "broken_json", "LINE, column 1: "),
    Bad(b'{"id": "\xff"}', "broken_json", "LINE, byte 9: not UTF-8"),
    Bad('{"id": "x"}'.encode("utf-16"), "broken_json", "LINE, byte 1: not UTF-8"),
    Bad(bytes(range(14, 60)), "broken_json", "LINE, column 1: "),
    Bad(b"\0" * 3000, "broken_json", "LINE, column 1: "),
    Bad(b"[" * 100_000, "broken_json", "LINE, column 1: nested too deeply"),
    Bad(b'{"id": ' + b"1" * 5000 + b"}", "broken_json", "LINE, column 1: "),
    Bad(b"NaN", "wrong_type", "the record is nan; expected an object"),
    Bad(b"null", "wrong_type", "the record is null; expected an object"),
    Bad(b"[]", "wrong_type", "the record is an array of 0; expected an object"),
    Bad(b'"' + b"x" * 3_000_000 + b'"', "wrong_type", 'xxx..."; expected an object'),
]

ODD_BUT_GOOD: dict[str, dict[str, Any]] = {
    "control strings": talk("Is </s> or <|im_end|> ### Image 1: a token?", "No, </s> is not."),
    "noncharacters": talk("What is \ufdd0 and \uffff?", "Both are noncharacters: \ufdd0."),
    "images only": talk("<image>\n<image>", "Two pictures.", images=["0.jpg", "1.jpg"]),
    "an unmarked image": talk("What is it?", "A picture.", images=["2.jpg"]),
    "an open question": talk("Why?", "So.", "And then?"),
    "a long line": talk("Why?", "So.", ignored="x" * 3_000_000),
    "odd characters": talk("a\0b \u202eright to left\u202c \u200b \U0001f469\u200d\U0001f680 e\u0301", "\u200b"),
    "many rounds": talk(*["More words about it. "] * 1200),
    "other keys": talk("Why?", "So.", source=None, score=float("nan"), tags=nested(300)),
}


def test_every_bad_record_is_a_reject_with_its_reason(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 40)
    good = [chat_record(number, images=[name], rounds=2) for number, name in enumerate(names)]
    good += [{"id": name, **record} for name, record in ODD_BUT_GOOD.items()]
    good.append({**talk("Why?", "So."), "id": "\u00fc " * 2000})
    bad = [Bad({"id": f"bad {number}", **record}, reason) for number, (record, reason) in enumerate(BAD_RECORDS)]
    bad += BAD_LINES
    bad += [Bad({**chat_record(0)}, "duplicate_id", "the id r0"), Bad(talk("Why?", ""), "empty_answer")]
    report = check(tmp_path, good, bad)
    assert report.notes["rounds_cut"] == 1
    assert report.notes["control_text"] == 1
    assert report.notes["image_placed_first"] == 1
    texts = {one.sample.key: "".join(piece.text for piece in one.pieces) for one in inspect_samples(tmp_path / "build")}
    for record in (ODD_BUT_GOOD["control strings"], ODD_BUT_GOOD["noncharacters"], ODD_BUT_GOOD["odd characters"]):
        assert any(all(turn["content"] in text for turn in record["messages"]) for text in texts.values())


def test_a_repeated_or_unusable_id_does_not_change_other_records(tmp_path: Path) -> None:
    good = [chat_record(number) for number in range(6)]
    twice = [Bad(chat_record(number % 3, rounds=2), "duplicate_id") for number in range(6)]
    check(tmp_path, good, twice)
    ids: list[Any] = ["", None, 1.5, True, [], {}, "\ud800", 10**4000, "3"]
    report = build(chat_blend(tmp_path, [{**talk("Why?", "So."), "id": value} for value in ids]), out=tmp_path / "ids")
    assert report.datasets["mine"].members == len(ids)
    assert len({name for _, name in samples_of(tmp_path / "ids")}) == len(ids)


def test_a_conversation_that_the_template_refuses_is_a_reject(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 4)
    good = [chat_record(number, images=[name]) for number, name in enumerate(names)]
    bad = [Bad({**chat_record(number), "id": f"text {number}"}, "template", "shows no image") for number in range(3)]
    check(tmp_path, good, bad, template="plain")


def test_a_dataset_of_nothing_but_rejects_still_accounts_for_them(tmp_path: Path) -> None:
    blend = chat_blend(tmp_path, ["broken", talk("Why?", "")], limits={"max_reject_share": 1.0})
    report = build(blend).datasets["mine"]
    assert (report.records, report.samples, dict(report.rejects)) == (2, 0, {"broken_json": 1, "empty_answer": 1})
    assert shards.verify(shards.open(tmp_path / "build")).problems == []
