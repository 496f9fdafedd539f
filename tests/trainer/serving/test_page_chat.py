"""Conversations on the chat page, in a real browser: what it sends, and what it shows of answers."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from tests.support.browser import Chromium
from tests.support.chat_pages import (
    COMPLETIONS,
    answers,
    ask,
    choose,
    drop,
    paste,
    questions,
    thumbnails,
    wait_for_answer,
)
from tests.support.chat_requests import MODEL, data_uri, image_bytes, image_part, text_part
from tests.support.fake_chat_server import FakeChat

RED, GREEN, BLUE = map(image_bytes, range(3))
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
MARKUP = '<img src=x onerror="document.title=1"> <b>bold</b>'
HOSTILE = MARKUP + " \x1b[31m \u202ecba 👩\u200d🚀 می\u200cخواهم"
"""Joiners stay as they are, since emoji and scripts need them."""


def part(image: bytes) -> dict[str, Any]:
    return image_part(data_uri(image))


def test_chosen_dropped_and_pasted_images_are_sent_as_they_are_before_their_question(
    chromium: Chromium, chat: FakeChat
) -> None:
    def check(page: Any) -> None:
        choose(page, red=RED)
        drop(page, {"green.png": ("image/png", GREEN), "blue.png": ("image/png", BLUE)})
        assert thumbnails(page) == ["Image 1: red.png", "Image 2: green.png", "Image 3: blue.png"]
        page.locator("[aria-label='Remove image 2: green.png']").click()
        assert thumbnails(page) == ["Image 1: red.png", "Image 2: blue.png"]
        ask(page, "  Which is darker?\n")
        assert thumbnails(page) == []
        ask(page, "Why?")

    chromium.look(chat.address, check)
    first = {"role": "user", "content": [part(RED), part(BLUE), text_part("Which is darker?")]}
    rest = [{"role": "assistant", "content": "Answer 1."}, {"role": "user", "content": "Why?"}]
    assert chat.bodies[COMPLETIONS] == [
        {"model": MODEL, "messages": [first], **STREAMED},
        {"model": MODEL, "messages": [first, *rest], **STREAMED},
    ]


def test_an_image_in_the_clipboard_is_added_but_text_with_its_image_stays_text(
    chromium: Chromium, chat: FakeChat
) -> None:
    def check(page: Any) -> None:
        paste(page, RED)
        page.wait_for_selector("#composer .picture img")
        paste(page, GREEN, "cells of a table")
        page.wait_for_function("() => document.getElementById('text').value === 'cells of a table'")
        assert len(thumbnails(page)) == 1
        page.locator("#text").press("Enter")
        wait_for_answer(page, 1)

    chromium.look(chat.address, check)
    [image, words] = chat.bodies[COMPLETIONS][0]["messages"][0]["content"]
    assert re.match("data:image/png;base64,", image["image_url"]["url"])  # the browser encodes what it pastes
    assert words == text_part("cells of a table")


def test_a_file_that_is_not_an_image_is_refused_by_name_and_the_others_are_added(
    chromium: Chromium, chat: FakeChat
) -> None:
    def check(page: Any) -> None:
        files = {
            "notes.txt": ("text/plain", b"x"),
            "a.svg": ("image/svg+xml", b"<svg/>"),
            "red.png": ("image/png", RED),
        }
        drop(page, files)
        assert "notes.txt, a.svg: not added" in page.locator("#notice").inner_text()
        assert thumbnails(page) == ["Image 1: red.png"]
        page.locator("#dismiss").click()
        assert page.locator("#notice").is_hidden()

    chromium.look(chat.address, check)


def test_an_image_alone_is_a_question(chromium: Chromium, chat: FakeChat) -> None:
    def check(page: Any) -> None:
        assert page.locator("[data-part=send]").is_disabled()
        choose(page, red=RED)
        page.locator("[data-part=send]").click()
        wait_for_answer(page, 1)

    chromium.look(chat.address, check)
    assert chat.bodies[COMPLETIONS][0]["messages"] == [{"role": "user", "content": [part(RED)]}]


def test_enter_sends_and_shift_enter_begins_a_line(chromium: Chromium, chat: FakeChat) -> None:
    def check(page: Any) -> None:
        page.locator("#text").press_sequentially("one")
        height = page.locator("#text").bounding_box()["height"]
        page.locator("#text").press("Shift+Enter")
        page.locator("#text").press_sequentially("two")
        assert page.locator("#text").bounding_box()["height"] > height
        page.locator("#text").press("Enter")
        wait_for_answer(page, 1)
        assert page.evaluate("document.activeElement.id") == "text"

    chromium.look(chat.address, check)
    assert chat.bodies[COMPLETIONS][0]["messages"] == [{"role": "user", "content": "one\ntwo"}]


def test_an_answer_grows_while_it_is_generated_and_is_read_out_when_it_is_complete(
    chromium: Chromium, chat: FakeChat
) -> None:
    chat.answers = [chat.gated("The first", " of", " them.\n", tokens=7, cached=1152)]

    def check(page: Any) -> None:
        ask(page, "Which?", answered=False)
        page.wait_for_function("() => document.querySelector('.answer .text').textContent === 'The first'")
        answer = page.locator(".answer .text")
        assert (answer.get_attribute("aria-live"), answer.get_attribute("aria-busy")) == ("polite", "true")
        assert page.locator("[data-part=send]").is_hidden()
        page.locator("#text").fill("meanwhile")
        page.locator("#text").press("Enter")  # one answer at a time
        assert page.locator("#text").input_value() == "meanwhile"
        chat.gate.set()
        wait_for_answer(page, 1)
        assert answer.text_content() == "The first of them."
        assert answer.get_attribute("aria-busy") == "false"
        usage = page.locator("[data-part=usage]").inner_text()
        assert re.fullmatch(r"7 tokens in (.+) s, the first after (.+) s · prompt: 1,200 tokens, 1,152 cached", usage)

    chromium.look(chat.address, check)


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop_ends_the_answer_and_keeps_what_came(chromium: Chromium, chat: FakeChat, how: str) -> None:
    chat.answers = [chat.gated("So far ", "never")]

    def check(page: Any) -> None:
        ask(page, "Tell me.", answered=False)
        page.wait_for_function("() => document.querySelector('.answer .text').textContent !== ''")
        if how == "button":
            page.locator("[data-part=stop]").click()
        else:
            page.keyboard.press("Escape")
        wait_for_answer(page, 1)
        assert answers(page) == ["So far"]
        assert "Stopped" in page.locator(".note").inner_text()
        ask(page, "More?")

    chromium.look(chat.address, check)
    assert chat.cancelled == 1
    assert chat.bodies[COMPLETIONS][1]["messages"][1:] == [
        {"role": "assistant", "content": "So far"},
        {"role": "user", "content": "More?"},
    ]


def test_a_question_that_was_stopped_before_the_first_word_is_replaced_by_the_next(
    chromium: Chromium, chat: FakeChat
) -> None:
    chat.answers = [lambda _: chat.stream([None])]

    def check(page: Any) -> None:
        ask(page, "Slow?", answered=False)
        page.wait_for_selector(".waiting:not([hidden])")
        page.keyboard.press("Escape")
        wait_for_answer(page, 1)
        assert "Another question replaces this one." in page.locator(".note").inner_text()
        page.locator("#text").fill("Fast?")
        page.locator("#text").press("Enter")
        page.wait_for_selector(".answer .text:has-text('Answer 2.')")
        assert questions(page) == ["Fast?"]

    chromium.look(chat.address, check)
    assert chat.bodies[COMPLETIONS][1]["messages"] == [{"role": "user", "content": "Fast?"}]


def test_editing_a_question_drops_what_follows_and_may_be_cancelled(chromium: Chromium, chat: FakeChat) -> None:
    def check(page: Any) -> None:
        choose(page, red=RED)
        ask(page, "First?")
        ask(page, "Second?")
        page.locator("#text").fill("a draft")
        page.locator(".question [data-part=edit]").first.click()
        assert page.locator("#text").input_value() == "First?"
        assert thumbnails(page) == ["Image 1: red.png"]
        assert page.locator(".round.dropped").count() == 1
        page.keyboard.press("Escape")
        assert page.locator(".round.dropped").count() == 0
        assert page.locator("#text").input_value() == "a draft"
        assert thumbnails(page) == []
        page.locator(".question [data-part=edit]").first.click()
        page.locator("[aria-label='Remove image 1: red.png']").click()
        choose(page, green=GREEN)
        page.locator("#text").fill("First again?")
        page.locator("#text").press("Enter")
        page.wait_for_selector(".answer .text:has-text('Answer 3.')")
        wait_for_answer(page, 1)
        assert questions(page) == ["First again?"]
        assert page.locator("#text").input_value() == "a draft"

    chromium.look(chat.address, check)
    assert chat.bodies[COMPLETIONS][2]["messages"] == [
        {"role": "user", "content": [part(GREEN), text_part("First again?")]}
    ]


def test_the_last_answer_may_be_generated_again(chromium: Chromium, chat: FakeChat) -> None:
    def check(page: Any) -> None:
        ask(page, "First?")
        ask(page, "Second?")
        assert page.locator(".answer [data-part=retry]:visible").count() == 1
        page.locator(".answer [data-part=retry]:visible").click()
        page.wait_for_selector(".answer .text:has-text('Answer 3.')")
        wait_for_answer(page, 2)
        assert answers(page) == ["Answer 1.", "Answer 3."]

    chromium.look(chat.address, check)
    assert chat.bodies[COMPLETIONS][2] == chat.bodies[COMPLETIONS][1]


def test_answers_are_text_and_their_control_characters_are_visible(chromium: Chromium, chat: FakeChat) -> None:
    chat.answers = [chat.pieces(*HOSTILE, "w" * 5000), chat.pieces(HOSTILE)]

    def check(page: Any) -> None:
        expected = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
        ask(page, HOSTILE)
        ask(page, "Again")
        assert answers(page) == [expected + "w" * 5000, expected]
        assert questions(page)[0] == expected
        assert page.locator(".round img, .round b").count() == 0
        assert page.title() == f"{MODEL} - chat"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    chromium.look(chat.address, check, width=360)
    # What was typed and answered is sent as it was
    assert chat.bodies[COMPLETIONS][1]["messages"][0]["content"] == HOSTILE


def test_an_answer_that_is_cut_off_or_empty_says_so(chromium: Chromium, chat: FakeChat) -> None:
    chat.answers = [chat.pieces("one two", reason="length"), chat.pieces()]

    def check(page: Any) -> None:
        ask(page, "Count.")
        assert page.locator(".note:visible").inner_text().startswith("Cut off")
        ask(page, "Go on.")
        assert page.locator("[data-part=empty]:visible").count() == 1

    chromium.look(chat.address, check)


def test_a_long_answer_with_the_page_scrolled_up_does_not_move_what_is_read(chromium: Chromium, chat: FakeChat) -> None:
    chat.answers = [chat.gated("line\n" * 200, *["more\n"] * 200)]

    def check(page: Any) -> None:
        ask(page, "Long?", answered=False)
        page.wait_for_function("() => scrollY > 1000")  # it follows the end
        page.mouse.move(600, 300)
        page.mouse.wheel(0, -1500)
        page.wait_for_function("() => document.documentElement.scrollHeight - scrollY - innerHeight > 1000")
        top = page.evaluate("scrollY")
        chat.gate.set()
        page.wait_for_function("() => document.querySelector('.answer .text').textContent.includes('more')")
        assert page.evaluate("scrollY") == top

    chromium.look(chat.address, check)
