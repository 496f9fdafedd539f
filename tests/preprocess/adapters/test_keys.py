"""Keys of records: none that carries meaning is dropped, the dataset's own names are mapped, others are counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.adapters.base import Tally
from preprocess.adapters.datasets.chat.forms import FORMS
from preprocess.adapters.parsing.keys import MEANINGS, has_value
from preprocess.adapters.registry import ADAPTERS
from preprocess.compiler.unknown_names import check_names, unused_names
from preprocess.conversation import Conversation, Reject, Role
from preprocess.errors import DataError
from tests.support.adapting import adapted, conversations, keyed, request_for, sample, written
from tests.support.chat_records import ONE, chat_request, read_chat, spoken, why

MESSAGES = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]


@pytest.mark.parametrize("name", ADAPTERS)
def test_no_adapter_drops_a_video(name: str, tmp_path: Path) -> None:
    made = adapted(name, tmp_path, keyed(name, "video", "a.mp4"))
    refused = [item for item in made if isinstance(item, Reject) and "video" in item.detail]
    assert refused
    assert {item.reason for item in refused} <= {"unknown_key", "no_answer"}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("value", [None, "", " ", [], {}])
def test_a_key_without_a_value_does_not_matter(name: str, value: Any, tmp_path: Path) -> None:
    made = adapted(name, tmp_path, keyed(name, "video", value))
    assert len(conversations(made)) == len(conversations(adapted(name, tmp_path, sample(name))))


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_says_which_keys_it_reads(name: str) -> None:
    assert ADAPTERS[name].keys


def test_the_reject_names_the_key_and_the_setting(tmp_path: Path) -> None:
    (item,) = read_chat(tmp_path, {"messages": MESSAGES, "videoPath": "a.mp4"})
    assert isinstance(item, Reject)
    assert item.detail == (
        'key "videoPath" holds a video, which is not read; set keys: {"videoPath": ignore} to leave it out, '
        'or fields: {"videoPath": video} to read it as video'
    )
    (item,) = read_chat(tmp_path, {"messages": MESSAGES, "jpg": "a.jpg"})
    assert isinstance(item, Reject)
    assert item.detail.endswith('or fields: {"jpg": image} to read it as image')


def test_a_key_that_the_blend_ignores_is_left_out(tmp_path: Path) -> None:
    record = {"messages": MESSAGES, "video": "a.mp4", "system": "Be brief."}
    (item,) = read_chat(tmp_path, record, keys={"video": None, "system": None})
    assert spoken(item) == [("user", "What?"), ("assistant", "That.")]


def test_names_of_keys_and_roles_are_those_of_the_blend(tmp_path: Path) -> None:
    talk = [{"who": "patient", "says": "What?"}, {"who": "doctor", "says": "That."}]
    record = {"uid": "7", "log": talk, "scan": "1.jpg", "page": 3}
    (item,) = read_chat(
        tmp_path,
        record,
        keys={"uid": "id", "log": "messages", "scan": "image", "who": "role", "says": "content"},
        roles={"patient": "user", "doctor": "assistant"},
    )
    assert isinstance(item, Conversation)
    assert (item.id, item.sources[0].record) == ("a/7", "7")
    assert spoken(item) == [("user", (ONE, "What?")), ("assistant", "That.")]
    (refused,) = read_chat(tmp_path, record, keys={"log": "messages", "who": "role", "says": "content"})
    assert isinstance(refused, Reject)
    assert 'set roles: {"patient": user}' in refused.detail


def test_an_image_under_a_key_that_nobody_reads_is_not_dropped_if_the_record_shows_none(tmp_path: Path) -> None:
    record = {"messages": MESSAGES, "scan": "a/1.png"}
    (item,) = read_chat(tmp_path, record)
    assert isinstance(item, Reject)
    assert item.detail == (
        'key "scan" holds the path of an image, and the record shows none; set fields: {"scan": image} to read it, or '
        'keys: {"scan": ignore} to leave it out'
    )
    turn = {**MESSAGES[0], "pic": "https://example.org/1.jpg?w=2"}
    assert why(read_chat(tmp_path, {"messages": [turn, MESSAGES[1]]})[0]) == "unknown_key"
    assert why(read_chat(tmp_path, record, keys={"scan": None})[0]) == ""
    assert why(read_chat(tmp_path, {**record, "image": "1.jpg"})[0]) == ""
    assert why(read_chat(tmp_path, {"messages": MESSAGES, "title": "About a.jpg\nand b.jpg"})[0]) == ""


def test_a_name_of_the_blend_that_no_record_has_is_noticed(tmp_path: Path) -> None:
    read_chat(tmp_path, {"log": [{"role": "pat", "content": "What?"}, MESSAGES[1]], "scan": "1.jpg"})
    keys = {"log": "messages", "scna": "image", "video": None}
    roles: dict[str, Role] = {"pat": "user", "doc": "assistant"}
    request = chat_request(tmp_path, keys=keys, roles=roles)
    list(ADAPTERS["chat"].read(request))
    assert unused_names(request.tally, keys, roles) == ["fields.scna", "keys.video", "roles.doc"]
    message = r"^fields.scna: no record or turn has the key scna; did you mean scan\?; keys that are not read: scan;"
    with pytest.raises(DataError, match=message):
        check_names(Tally(keys_found={"log"}, ignored_keys=Counter(scan=1)), keys)
    check_names(request.tally, {"log": "messages", "video": None})


def test_a_name_of_the_blend_and_its_own_name_together_are_refused(tmp_path: Path) -> None:
    record = {"messages": MESSAGES, "log": MESSAGES}
    assert why(read_chat(tmp_path, record, keys={"log": "messages"})[0]) == "bad_value"
    both = {"log": MESSAGES, "talk": MESSAGES}
    (item,) = read_chat(tmp_path, both, keys={"log": "messages", "talk": "messages"})
    assert isinstance(item, Reject)
    assert item.detail == (
        'there are both "log" and "talk", which the blend reads as messages; expected one. To leave one out, set keys: '
        '{"log": ignore}'
    )
    alone = {"messages": None, "log": MESSAGES}
    assert why(read_chat(tmp_path, alone, keys={"log": "messages"})[0]) == ""


def test_other_adapters_map_keys_too(tmp_path: Path) -> None:
    written(tmp_path, {"a.json": [{"nr": 7, "photo": "1.jpg", "conversations": [
        {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]}]})  # fmt: skip
    request = replace(request_for("llava", tmp_path, annotations=("a.json",)), keys={"photo": "image", "nr": "id"})
    (item,) = ADAPTERS["llava"].read(request)
    assert isinstance(item, Conversation)
    assert (item.id, item.images) == ("a/7", (ONE,))


def test_keys_that_do_not_matter_are_counted(tmp_path: Path) -> None:
    read_chat(tmp_path, *[{"messages": MESSAGES, "page": 1, "url_of_page": "x", "\ud800": 1}] * 3)
    request = chat_request(tmp_path, keys={}, roles={})
    list(ADAPTERS["chat"].read(request))
    assert request.tally.ignored_keys == {"page": 3, "url_of_page": 3, "\\ud800": 3}


def test_a_record_with_a_name_for_every_word_takes_little_memory() -> None:
    tally = Tally()
    for number in range(1000):
        tally.ignored_key(str(number))
    assert len(tally.ignored_keys) == 100


def test_fields_that_a_filter_reads_are_those_of_the_record(tmp_path: Path) -> None:
    written(tmp_path, {"a.json": [{"messages": MESSAGES, "rating": 4, "tags": ["a"], "weight": 0.5}]})
    request = replace(chat_request(tmp_path, keys={}, roles={}), filter_fields=("rating", "tags", "weight"))
    (item,) = ADAPTERS["chat"].read(request)
    assert isinstance(item, Conversation)
    assert item.fields == {"rating": 4, "weight": 0.5}
    assert not request.tally.ignored_keys


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(0, 2), st.just(0.5), st.sampled_from(["", "word", "1.jpg", '["1.jpg"]']),
    st.sampled_from([[], ["1.jpg"], {}, {"path": "1.jpg"}, [["a", "b"]], [{"name": "tool"}], MESSAGES]),
)  # fmt: skip
BASES: list[dict[str, Any]] = [
    {"messages": MESSAGES},
    {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]},
    {"query": "What?", "response": "That."},
    {"instruction": "What?", "output": "That."},
    {},
]
CARRIED = {
    "an image": lambda item: item.images,
    "a system prompt": lambda item: item.turns[0].role == "system",
    "tools": lambda item: item.tools,
    "a split": lambda item: item.official_split,
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(base=st.sampled_from(BASES), more=st.dictionaries(st.sampled_from(sorted(MEANINGS)), VALUES, max_size=3))
def test_a_key_that_carries_meaning_is_used_or_its_record_refused(
    tmp_path: Path, base: dict[str, Any], more: dict[str, Any]
) -> None:
    (item,) = read_chat(tmp_path, {**base, **more})
    if isinstance(item, Reject):
        assert item.reason != "internal_error", item.detail
        return
    names = {key for form in FORMS.values() for key in form.keys}
    for key, value in more.items():
        if has_value(value) and key not in base:
            used = CARRIED.get(MEANINGS[key])
            assert used(item) if used else key in names, (key, value)
