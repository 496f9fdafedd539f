"""The chat page in front of the real server with a tiny model: what it shows is what the model read and wrote."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("uvicorn")

from tests.support import model_batches
from tests.support.browser import Chromium
from tests.support.chat_pages import ask, choose, drop, exported, questions, wait_for_answer
from tests.support.chat_requests import MODEL, chat_body, data_uri, image_bytes, image_part, text_part
from tests.support.chat_servers import ChatServer, chat_server, served
from tests.support.tiny_models import loaded
from trainer.inference.conversation import Exchange, prompt_of
from trainer.inference.images import opened_image

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
server = pytest.fixture(scope="module")(served)

FIRST, SECOND = image_bytes(1), image_bytes(2)


def set_(page: Any, **values: object) -> None:
    """Settings of the page."""
    page.locator("#open-settings").click()
    for name, value in values.items():
        page.locator(f"[name={name}]").fill(str(value))
    page.locator("#settings [data-close]").click()


def shown_prompt(page: Any, button: Any) -> dict[str, Any]:
    """What the dialog behind a button copies."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button.click()
    page.wait_for_selector("#prompt[open]")
    page.locator("[data-part=copyAll]").click()
    page.wait_for_selector("[data-part=said]:has-text('copied')")
    prompt: dict[str, Any] = json.loads(page.evaluate("navigator.clipboard.readText()"))
    page.keyboard.press("Escape")
    return prompt


def test_a_conversation_of_two_rounds_has_the_answers_and_ids_of_the_model(
    chromium: Chromium, server: ChatServer
) -> None:
    def check(page: Any) -> tuple[list[str], list[dict[str, Any]]]:
        set_(page, temperature=0, max_tokens=8)
        choose(page, first=FIRST, second=SECOND)
        ask(page, "Which is darker?")
        ask(page, "Why <image>?")
        prompts = [shown_prompt(page, button) for button in page.locator(".answer [data-part=ids]").all()]
        assert page.locator("#prompt .image").count() == 2
        return [message["content"] for message in exported(page)["messages"][1::2]], prompts

    (one, two), prompts = chromium.look(server.url, check)
    parts = [*(image_part(data_uri(image)) for image in (FIRST, SECOND)), text_part("Which is darker?")]
    asked: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    assert answer(server, asked) == one
    asked += [{"role": "assistant", "content": one}, {"role": "user", "content": "Why <image>?"}]
    assert answer(server, asked) == two
    images = tuple(opened_image(data, server.speaker.geometry, Path("a")) for data in (FIRST, SECOND))
    question = Exchange(question="Which is darker?", images=images)
    rounds = [[question], [replace(question, answer=one), Exchange(question="Why <image>?")]]
    for exchanges, shown in zip(rounds, prompts, strict=True):
        prompt = prompt_of(exchanges, server.speaker, end_id=server.model.prompts.generator.end_id)
        assert shown["ids"] == prompt.ids.tolist()
        assert [image["first"] for image in shown["images"]] == list(prompt.slots)


def answer(server: ChatServer, messages: list[dict[str, Any]]) -> str:
    reply = server.post("v1/chat/completions", chat_body(messages=messages, temperature=0, max_tokens=8))
    return str(reply.json()["choices"][0]["message"]["content"]).strip()


def test_an_answer_is_stopped_in_the_engine_and_asked_again(chromium: Chromium, server: ChatServer) -> None:
    def check(page: Any) -> None:
        set_(page, max_tokens=2000, temperature=0)  # its likeliest token is never the end
        ask(page, "Tell me a long story.", answered=False)
        page.wait_for_function("() => document.querySelector('.answer .text').textContent.length > 20")
        page.keyboard.press("Escape")
        wait_for_answer(page, 1)
        assert "Stopped" in page.locator(".note").inner_text()
        set_(page, max_tokens=5)
        page.locator("[data-part=retry]").click()
        page.wait_for_selector("[data-part=usage]:has-text('5 tokens')")

    chromium.look(server.url, check)
    assert server.model.engine.stats().running == 0


def test_what_the_server_refuses_is_shown_with_its_reason(chromium: Chromium, server: ChatServer) -> None:
    def check(page: Any) -> None:
        drop(page, {"broken.png": ("image/png", b"not an image")})
        ask(page, "What is this?")
        note = page.locator(".note.fault").inner_text()
        assert note.startswith(
            "The server refused this request: messages[0].content[0].image_url.url: cannot be decoded"
        )
        page.locator("[data-part=edit]").first.click()
        page.locator("[aria-label='Remove image 1: broken.png']").click()
        set_(page, max_tokens=5)
        page.locator("#text").press("Enter")
        page.wait_for_selector("[data-part=usage]:has-text('tokens')")
        assert questions(page) == ["What is this?"]
        set_(page, max_tokens=10**6)
        ask(page, "More?")
        assert "max_tokens: got 1000000; expected" in page.locator(".note.fault").inner_text()
        assert exported(page)["messages"][0]["content"] == "What is this?"

    chromium.look(server.url, check, failures=(400,))


@pytest.fixture(scope="module")
def locked() -> Iterator[ChatServer]:
    with chat_server(loaded(), key="secret") as running:
        yield running


def test_the_page_of_a_server_with_a_key_asks_for_it(chromium: Chromium, locked: ChatServer) -> None:
    def check(page: Any) -> None:
        page.wait_for_selector("#key[open]")
        page.locator("[name=key]").fill("secret")
        page.keyboard.press("Enter")
        page.wait_for_selector(f"h1:has-text('{MODEL}')")
        set_(page, max_tokens=3)
        ask(page, "Hello?")
        assert page.locator("[data-part=usage]").inner_text().startswith("3 tokens")

    chromium.look(locked.url, check, failures=(401,))
