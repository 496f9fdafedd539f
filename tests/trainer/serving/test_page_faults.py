"""What the chat page does when the server refuses, fails or is gone, and when it wants a key; in a real browser."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("uvicorn")

from tests.support.browser import Chromium
from tests.support.chat_pages import COMPLETIONS, answers, ask, choose, wait_for_answer
from tests.support.chat_requests import image_bytes
from tests.support.fake_chat_server import FakeChat, event, fault

RED = image_bytes()


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (400, {}, "The server refused this request: WHY"),
        (413, {}, "This is more than the server accepts: WHY"),
        (429, {"Retry_After": "3"}, "The server is busy. WHY Try again in 3 s."),
        (500, {}, "The server failed (HTTP 500): WHY"),
        (503, {}, "The server does not answer questions now. WHY"),
    ],
)
def test_an_error_of_the_server_is_shown_in_words_and_the_question_may_be_asked_again(
    chromium: Chromium, chat: FakeChat, status: int, headers: dict[str, str], words: str
) -> None:
    why = "messages[0]: <b>\x1b[31m"
    chat.answers = [fault(status, why, **headers)]

    def check(page: Any) -> None:
        choose(page, red=RED)
        ask(page, "First?")
        note = page.locator(".note.fault").inner_text()
        assert note.startswith(words.replace("WHY", why.replace("\x1b", "\\x1b")))
        assert note.endswith("Another question replaces this one.")
        assert page.locator("#status").inner_text() == note
        page.locator("[data-part=retry]").click()
        page.wait_for_selector(".answer .text:has-text('Answer 2.')")
        assert page.locator(".note:visible").count() == 0

    chromium.look(chat.address, check, failures=(status,))
    first, second = chat.bodies[COMPLETIONS]
    assert first == second


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([event("So far")], "The connection to the server ended before the answer did."),
        ([event("So far"), b'data: {"error": {"message": "out of memory"}}\n\n'], "The answer failed: out of memory"),
        ([event("So far"), b"data: {broken\n\n"], "The connection to the server ended before the answer did."),
    ],
)
def test_an_answer_that_breaks_keeps_what_came_and_says_why(
    chromium: Chromium, chat: FakeChat, chunks: list[bytes | None], words: str
) -> None:
    chat.answers = [lambda _: chat.stream(chunks)]

    def check(page: Any) -> None:
        ask(page, "First?")
        assert answers(page) == ["So far"]
        assert page.locator(".note.fault").inner_text().strip() == words

    chromium.look(chat.address, check)


def test_a_server_that_is_gone_is_named_so(chromium: Chromium, chat: FakeChat) -> None:
    def check(page: Any) -> None:
        page.wait_for_function("() => document.title !== 'Chat'")
        page.evaluate("() => { window.fetch = async () => { throw new TypeError('Failed to fetch'); }; }")
        ask(page, "Are you there?")
        assert page.locator(".note.fault").inner_text().startswith("The server cannot be reached.")

    chromium.look(chat.address, check)


def test_the_key_is_asked_for_kept_for_the_tab_and_sent_with_each_request(chromium: Chromium, chat: FakeChat) -> None:
    chat.key = "right"

    def check(page: Any) -> None:
        page.wait_for_selector("#key[open]")
        assert page.locator("#key .fault").is_hidden()
        page.locator("[name=key]").fill("wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key .fault:visible")
        page.locator("[name=key]").fill("right")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.title !== 'Chat'")
        ask(page, "First?")
        page.reload()
        page.wait_for_function("() => document.title !== 'Chat'")
        assert page.locator("#key").is_hidden()
        chat.key = "new"
        ask(page, "Second?", answered=False)
        page.wait_for_selector("#key[open]")
        page.locator("#key [data-close]").click()
        wait_for_answer(page, 2)
        assert page.locator(".note.fault").inner_text().startswith("The server needs a key.")
        page.locator(".answer [data-part=retry]:visible").click()
        page.wait_for_selector("#key[open]")
        page.locator("[name=key]").fill("new")
        page.keyboard.press("Enter")
        page.wait_for_selector(".answer .text:has-text('Answer 2.')")
        assert page.evaluate("JSON.stringify(localStorage)") == "{}"

    chromium.look(chat.address, check, failures=(401,))


def test_events_are_read_however_their_bytes_are_cut(chromium: Chromium, chat: FakeChat) -> None:
    stream = (
        b": a comment\r\ndata: {}\r\n\r\nid: 7\ndata:one\ndata:  two\n\n"
        b"event: x\n\ndata: \xe2\x98\x83\r\rdata\n\ndata: cut off"
    )
    expected = ["{}", "one\n two", "\u2603"]

    def check(page: Any) -> Any:
        return page.evaluate(
            """async ([bytes, size]) => {
                const { eventsOf } = await import("/page/event_stream.js");
                const all = [];
                for (let length = 1; length <= size; length += 1) {
                    const body = new ReadableStream({
                        start(controller) {
                            for (let start = 0; start < bytes.length; start += length)
                                controller.enqueue(new Uint8Array(bytes.slice(start, start + length)));
                            controller.close();
                        },
                    });
                    const events = [];
                    for await (const data of eventsOf(body)) events.push(data);
                    all.push(events);
                }
                return all;
            }""",
            [list(stream), len(stream)],
        )

    assert chromium.look(chat.address, check) == [expected] * len(stream)
