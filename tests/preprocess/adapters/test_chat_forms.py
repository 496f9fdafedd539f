"""The forms of chat: every common one is found by its keys and read whole, and what fits none or two is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preprocess.adapters.datasets.chat.forms import FORMS as FORM_TABLE
from preprocess.adapters.datasets.chat.forms import SYSTEM_KEYS, TOOL_KEYS
from preprocess.adapters.registry import ADAPTERS
from preprocess.containers.image_columns import IMAGE_KEYS
from tests.support.chat_records import MESSAGES, ONE, ROUND, SHAREGPT, SHOWN, TWO, chat_request, read_chat, spoken, why
from tests.support.paths import ROOT

FORMS: list[tuple[str, dict[str, Any], list[tuple[str, Any]]]] = [
    ("messages", {"messages": MESSAGES}, ROUND),
    ("messages", {"messages": json.dumps(MESSAGES)}, ROUND),
    ("messages", {"messages": SHAREGPT}, ROUND),
    ("messages", {"messages": MESSAGES, "conversations": None, "texts": []}, ROUND),
    ("messages", {"messages": MESSAGES, "prompt": "What?"}, ROUND),
    ("sharegpt", {"conversations": SHAREGPT}, ROUND),
    ("sharegpt", {"conversations": [{"role": "user", "value": "What?"}, {"role": "bot", "value": "That."}]}, ROUND),
    ("sharegpt", {"image": "1.jpg", "conversations": SHAREGPT, "data_source": "web"}, SHOWN),
    (
        "sharegpt",
        {"conversations": [{"from": "user", "value": "Picture 1: <img>1.jpg</img>\nWhat?"}, SHAREGPT[1]]},
        [("user", ("Picture 1: ", ONE, "What?")), ("assistant", "That.")],
    ),
    ("sharegpt", {"image": ["1.jpg"], "conversations": [{"from": "human", "value": [{"type": "image"}]}, SHAREGPT[1]]},
     [("user", (ONE,)), ("assistant", "That.")]),
    ("conversation", {"conversation": [{"speaker": "Human", "text": "What?"}, {"speaker": "AI", "text": "That."}]},
     ROUND),
    ("conversation", {"conversation": [{"input": "What?", "output": "That."}]}, ROUND),
    ("conversation", {"conversation": [{"human": "What?"}, {"gpt": "That."}]}, ROUND),
    ("sharegpt", {"conversations": [["What?", "That."]], "image": "1.jpg"}, SHOWN),
    ("messages", {"messages": [["system", "Be brief."], ["User", "What?"], ["bot", "That."]]},
     [("system", "Be brief."), *ROUND]),
    ("texts", {"images": ["1.jpg"], "texts": [{"user": "What?", "assistant": "That.", "source": "a"}]}, SHOWN),
    ("query_response", {"query": "<image>What?", "response": "That.", "images": ["1.jpg"], "history": []}, SHOWN),
    ("query_response", {"query": "What?", "response": "That.", "history": [["a", "b"]]},
     [("user", "a"), ("assistant", "b"), *ROUND]),
    ("alpaca", {"instruction": "What?", "input": "", "output": "That."}, ROUND),
    ("alpaca", {"instruction": "Sum:", "input": "1 and 2", "output": "3", "history": '[["a", "b"]]'},
     [("user", "a"), ("assistant", "b"), ("user", "Sum:\n1 and 2"), ("assistant", "3")]),
    ("prompt_completion", {"prompt": "What?", "completion": "That.", "images": ["1.jpg"]}, SHOWN),
    ("prompt_completion", {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, ROUND),
    ("prompt_response", {"prompt": "What?", "response": "That."}, ROUND),
    ("question_answer", {"question": "What?", "answer": "That.", "image": "1.jpg"}, SHOWN),
    ("caption", {"caption": "That.", "image": "1.jpg"}, [("user", (ONE,)), ("assistant", "That.")]),
    ("caption", {"text": ["That."], "txt": "That.", "images": ["1.jpg", "2.jpg"]},
     [("user", (ONE, TWO)), ("assistant", "That.")]),
]  # fmt: skip


@pytest.mark.parametrize(("form", "record", "expected"), FORMS)
def test_a_form_is_found_by_its_keys_and_counted(
    tmp_path: Path, form: str, record: dict[str, Any], expected: list[tuple[str, Any]]
) -> None:
    (item,) = read_chat(tmp_path, record)
    assert spoken(item) == expected
    request = chat_request(tmp_path, keys={}, roles={})
    list(ADAPTERS["chat"].read(request))
    assert request.tally.forms == {form: 1}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": MESSAGES, "conversations": SHAREGPT}, "bad_value"),
        ({"messages": MESSAGES, "prompt": "Who?"}, "unknown_key"),
        ({"messages": "no JSON"}, "bad_value"),
        ({"texts": [{"user": "What?", "assistant": ""}]}, "empty_answer"),
        ({"texts": [{"user": "What?", "answer": "This.", "assistant": "That."}]}, "bad_value"),
        ({"query": "What?", "response": "That.", "history": [["a"]]}, "wrong_type"),
        ({"instruction": "What?", "input": 3, "output": "That."}, "wrong_type"),
        ({"question": "What?", "answers": ["This.", "That."]}, "unknown_key"),
        ({"prompt": "What?", "chosen": "That.", "rejected": "This."}, "preference_pair"),
        ({"messages": MESSAGES, "rejected_response": "This."}, "preference_pair"),
        ({"text": "A book."}, "missing_key"),
        ({"text": "A book.", "caption": "A cup.", "image": "1.jpg"}, "bad_value"),
        ({"caption": ["A book.", "A cup."], "image": "1.jpg"}, "bad_value"),
        ({"caption": " ", "image": "1.jpg"}, "empty_answer"),
        ({"caption": 7, "image": "1.jpg"}, "wrong_type"),
        ({"caption": "A <image>.", "image": "1.jpg"}, "image_in_answer"),
        ({"caption": "A book.", "question": "What?", "image": "1.jpg"}, "unknown_key"),
    ],
)
def test_a_record_that_fits_two_forms_or_none_or_says_more_is_refused(
    tmp_path: Path, record: dict[str, Any], reason: str
) -> None:
    assert [why(item) for item in read_chat(tmp_path, record)] == [reason]


def test_the_option_form_decides_between_two_and_ignores_the_keys_of_the_other(tmp_path: Path) -> None:
    record = {"messages": MESSAGES, "prompt": "What?", "query": "Who?", "response": "I."}
    assert spoken(read_chat(tmp_path, record, form="messages")[0]) == ROUND
    assert spoken(read_chat(tmp_path, record, form="query_response")[0]) == [("user", "Who?"), ("assistant", "I.")]
    assert why(read_chat(tmp_path, record, form="alpaca")[0]) == "missing_key"


def test_the_page_names_every_form_and_key() -> None:
    page = (ROOT / "docs/chat.md").read_text(encoding="utf-8")
    rows = page.split("## Forms")[1].split("\n\n")[1].splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(FORM_TABLE)
    assert [name for name in (*IMAGE_KEYS, *SYSTEM_KEYS, *TOOL_KEYS) if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([["What?", "That.", "x"]], "wrong_type"),
        ([["user", "What?"], ["What?", "That."]], "bad_value"),
        ([["user", "What?"], MESSAGES[1]], "wrong_type"),
        ([["What?", 3]], "wrong_type"),
        ([[None, "That."]], "wrong_type"),
        ([{"user": "What?", "assistant": ""}], "empty_answer"),
        ([{"user": "What?"}, {"user": "That."}], "no_answer"),
    ],
)
def test_arrays_of_two_and_single_keys_are_turns_only_in_an_order_with_a_meaning(
    tmp_path: Path, turns: list[Any], reason: str
) -> None:
    assert why(read_chat(tmp_path, {"messages": turns})[0]) == reason
