"""What the chat page keeps, sets and exports, and what it shows of ids; in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn")

import shards
from tests.support.browser import Chromium
from tests.support.chat_pages import (
    COMPLETIONS,
    answers,
    ask,
    choose,
    exported,
    questions,
    wait_for_answer,
)
from tests.support.chat_requests import MODEL, data_uri, image_bytes
from tests.support.fake_chat_server import FakeChat, fault
from tests.support.small_blends import build, chat_blend

RED, GREEN = map(image_bytes, range(2))
QUESTION = "Which is <b>darker</b>, ☃?"


def test_settings_are_sent_as_numbers_and_only_if_they_are_set(chromium: Chromium, chat: FakeChat) -> None:
    values = {"temperature": "0.7", "top_p": "0.9", "max_tokens": "50", "seed": "9007199254740991"}

    def check(page: Any) -> None:
        page.locator("#open-settings").click()
        for name, value in values.items():
            page.locator(f"[name={name}]").fill(value)
        page.locator("[name=system]").fill("Be short.")
        page.locator("#settings [data-close]").click()
        assert "temperature 0.7" in page.locator("#settings-summary").inner_text()
        ask(page, "With?")
        page.reload()
        page.wait_for_selector(".round")
        page.locator("#open-settings").click()
        assert page.locator("[name=seed]").input_value() == values["seed"]
        page.locator("#settings [type=reset]").click()
        page.locator("#settings [data-close]").click()
        ask(page, "Without?")

    chromium.look(chat.address, check)
    first, second = chat.bodies[COMPLETIONS]
    assert {name: first[name] for name in values} == {name: json.loads(value) for name, value in values.items()}
    assert first["messages"] == [{"role": "system", "content": "Be short."}, {"role": "user", "content": "With?"}]
    assert second.keys() == {"model", "messages", "stream", "stream_options"}
    assert second["messages"][0] == {"role": "user", "content": "With?"}


def test_a_setting_that_is_wrong_is_shown_and_nothing_is_sent(chromium: Chromium, chat: FakeChat) -> None:
    def check(page: Any) -> None:
        page.locator("#open-settings").click()
        page.locator("[name=temperature]").fill("-1")
        page.locator("#settings [data-close]").click()
        page.locator("#text").fill("Hot?")
        page.locator("#text").press("Enter")
        page.wait_for_selector("#settings[open]")
        assert page.evaluate("document.activeElement.name") == "temperature"
        page.keyboard.press("Escape")
        assert page.locator("#text").input_value() == "Hot?"

    chromium.look(chat.address, check)
    assert COMPLETIONS not in chat.bodies


def test_a_reload_keeps_the_conversation_with_its_images_and_new_removes_it_with_undo(
    chromium: Chromium, chat: FakeChat
) -> None:
    def check(page: Any) -> None:
        choose(page, red=RED)
        ask(page, "First?")
        page.reload()
        page.wait_for_selector(".question .picture img")
        assert (questions(page), answers(page)) == (["First?"], ["Answer 1."])
        ask(page, "Second?")
        page.locator("#new").click()
        assert questions(page) == []
        page.locator("#undo").click()
        assert questions(page) == ["First?", "Second?"]
        page.locator("#new").click()
        ask(page, "Other?")
        assert page.locator("#undo-bar").is_hidden()
        page.reload()
        page.wait_for_selector(".round")
        assert questions(page) == ["Other?"]

    chromium.look(chat.address, check)
    second, third = chat.bodies[COMPLETIONS][1:]
    assert second["messages"][0]["content"][0]["image_url"]["url"] == data_uri(RED)
    assert third["messages"] == [{"role": "user", "content": "Other?"}]


def test_a_question_that_a_reload_left_unanswered_may_be_asked_again(chromium: Chromium, chat: FakeChat) -> None:
    chat.answers = [chat.gated("Half")]

    def check(page: Any) -> None:
        ask(page, "Long?", answered=False)
        page.wait_for_function("() => document.querySelector('.answer .text').textContent === 'Half'")
        page.reload()
        page.wait_for_selector(".round")
        assert "left before this was answered" in page.locator(".note").inner_text()
        page.locator("[data-part=retry]").click()
        page.wait_for_selector(".answer .text:has-text('Answer 2.')")

    chromium.look(chat.address, check)


def test_a_new_conversation_ends_the_answer_that_is_being_generated(chromium: Chromium, chat: FakeChat) -> None:
    chat.answers = [chat.gated("Half")]

    def check(page: Any) -> None:
        ask(page, "Long?", answered=False)
        page.wait_for_function("() => document.querySelector('.answer .text').textContent === 'Half'")
        page.locator("#new").click()
        ask(page, "Short?")
        assert (questions(page), answers(page)) == (["Short?"], ["Answer 2."])
        page.locator("#new").click()
        page.locator("#undo").click()
        assert questions(page) == ["Short?"]

    chromium.look(chat.address, check)
    assert chat.cancelled == 1


def test_another_tab_has_a_conversation_of_its_own(chromium: Chromium, chat: FakeChat) -> None:
    def check(page: Any) -> None:
        ask(page, "Here?")
        other = page.context.new_page()
        other.goto(chat.address)
        other.wait_for_selector("#welcome:visible")
        ask(other, "There?")
        page.reload()
        page.wait_for_selector(".round")
        assert questions(page) == ["Here?"]

    chromium.look(chat.address, check)


def test_ids_are_those_of_the_request_with_positions_of_images_and_can_be_copied(
    chromium: Chromium, chat: FakeChat
) -> None:
    ids = [1, 306, *[32000] * 4, 13, *[32000] * 8, 29973, 2]
    tokens = ["<s>", " I", *["<image>"] * 4, "\n", *["<image>"] * 8, "?\u202e", "</s>"]
    images = [{"first": 2, "positions": 4, "tiles": 1}, {"first": 7, "positions": 8, "tiles": 2}]
    chat.prompt = {"ids": ids, "tokens": tokens, "images": images, "control_ids": [1, 2, 32000], "limit": 2048}

    def check(page: Any) -> None:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        choose(page, red=RED, green=GREEN)
        ask(page, "First?")
        ask(page, "Second?")
        page.locator(".answer [data-part=ids]").first.click()
        page.wait_for_selector("#prompt[open]")
        rows = [row.replace("\n", " ") for row in page.locator("#prompt .tokens > li").all_inner_texts()]
        assert rows == [
            "<s> 1",
            "␣I 306",
            "image 1: positions 2 to 5 (4) 32000",
            "⏎ 13",
            "image 2: positions 7 to 14 (8 in 2 tiles) 32000",
            "?\\u202e 29973",
            "</s> 2",
        ]
        assert [image.get_attribute("alt") for image in page.locator("#prompt img").all()] == [
            "Image 1: red.png",
            "Image 2: green.png",
        ]
        assert page.locator("#prompt .special .token").all_inner_texts() == ["<s>", "</s>"]
        summary = page.locator("#prompt [data-part=summary]").inner_text()
        assert summary == "17 ids; 12 of them for 2 images; the model reads up to 2,048."
        page.locator("[data-part=copyIds]").click()
        page.wait_for_selector("[data-part=said]:has-text('Ids copied')")
        assert json.loads(page.evaluate("navigator.clipboard.readText()")) == ids
        page.locator("[data-part=copyAll]").click()
        page.wait_for_selector("[data-part=said]:has-text('texts copied')")
        assert json.loads(page.evaluate("navigator.clipboard.readText()")) == chat.prompt
        page.keyboard.press("Escape")
        page.locator("#text").fill("Third?")
        page.locator("#composer [data-part=ids]").click()
        page.wait_for_selector("#prompt[open]")

    chromium.look(chat.address, check)
    asked = [{name: body[name] for name in ("model", "messages")} for body in chat.bodies[COMPLETIONS]]
    first, draft = chat.bodies["/v1/prompt"]
    assert first == asked[0]
    later = [{"role": "assistant", "content": "Answer 2."}, {"role": "user", "content": "Third?"}]
    assert draft == {"model": MODEL, "messages": [*asked[1]["messages"], *later]}


def test_copying_works_without_the_clipboard_api(chromium: Chromium, chat: FakeChat) -> None:
    """As on a page whose address is not secure."""

    def check(page: Any) -> None:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        ask(page, "First?")
        page.evaluate("window.clipboard = navigator.clipboard")
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })")
        page.locator(".answer [data-part=copy]").click()
        page.wait_for_selector("#status:has-text('copied')", state="attached")
        assert page.evaluate("window.clipboard.readText()") == "Answer 1."

    chromium.look(chat.address, check)


def test_the_exported_line_is_read_by_the_compiler_as_the_conversation(
    chromium: Chromium, chat: FakeChat, tmp_path: Path
) -> None:
    def check(page: Any) -> dict[str, Any]:
        assert page.locator("#export").is_disabled()
        choose(page, red=RED, green=GREEN)
        ask(page, QUESTION)
        ask(page, "Why?")
        return exported(page)

    record = chromium.look(chat.address, check)
    build(chat_blend(tmp_path, [record]))
    sample = shards.open(tmp_path / "build")["train"][0]
    texts = [message["content"] for message in record["messages"][1:]]
    assert texts == ["Answer 1.", "Why?", "Answer 2."]
    assert [bytes(image) for image in sample.images] == [RED, GREEN]
    by_hand = {"role": "user", "content": f"<image><image>{QUESTION}"}
    (tmp_path / "by_hand/mine").mkdir(parents=True)
    for name, image in {"a.png": RED, "b.png": GREEN}.items():
        (tmp_path / "by_hand/mine" / name).write_bytes(image)
    build(
        chat_blend(
            tmp_path / "by_hand", [{"messages": [by_hand, *record["messages"][1:]], "images": ["a.png", "b.png"]}]
        )
    )
    np.testing.assert_array_equal(sample.ids, shards.open(tmp_path / "by_hand/build")["train"][0].ids)


def test_only_what_was_answered_is_exported(chromium: Chromium, chat: FakeChat) -> None:
    chat.answers = [chat.pieces("Yes."), fault(500, "out of memory")]

    def check(page: Any) -> dict[str, Any]:
        page.locator("#open-settings").click()
        page.locator("[name=system]").fill("Be short.")
        page.keyboard.press("Escape")
        ask(page, "First?")
        ask(page, "Second?")
        return exported(page)

    assert chromium.look(chat.address, check, failures=(500,))["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "Yes."},
    ]


SLOW_STORAGE = """
    const isOpen = new Promise((resolve) => { window.openStorage = resolve; });
    IDBOpenDBRequest.prototype.addEventListener = function (kind, act) {
        const later = async (event) => { await isOpen; act(event); };
        EventTarget.prototype.addEventListener.call(this, kind, kind === "success" ? later : act);
    };
"""


def test_a_question_that_is_sent_before_the_storage_answers_is_asked_after_what_it_kept(
    chromium: Chromium, chat: FakeChat
) -> None:
    def check(page: Any) -> None:
        ask(page, "First?")
        page.add_init_script(SLOW_STORAGE)
        page.reload()
        ask(page, "Second?", answered=False)
        assert page.locator("#text").input_value() == "Second?"
        assert len(chat.bodies[COMPLETIONS]) == 1
        page.evaluate("window.openStorage()")
        wait_for_answer(page, 2)
        assert questions(page) == ["First?", "Second?"]
        assert page.locator("#text").input_value() == ""

    chromium.look(chat.address, check)
    assert [message["content"] for message in chat.bodies[COMPLETIONS][1]["messages"]] == [
        "First?",
        "Answer 1.",
        "Second?",
    ]
