"""The chat page is served without a key and with strict headers, and is usable in the dark, on a phone and by ear."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from tests.support.asgi_client import get
from tests.support.browser import Chromium, contrasts, is_accessible
from tests.support.chat_pages import ask, choose
from tests.support.chat_requests import image_bytes
from tests.support.fake_chat_server import FakeChat, app_of, fault
from trainer.serving.page import FOLDER, page_routes

RED, WIDE = image_bytes(0), image_bytes(1, (900, 900))
COLOURED = [
    "h1",
    ".question .text",
    ".answer .text",
    ".control",
    ".note.fault",
    ".bar span",
    ".actions button",
    "[data-part=usage]",
    "#composer [data-part=ids]",
    "#composer textarea",
    ".round-button",
    "#settings label",
    "#settings small",
    "#settings input",
    "#settings .main",
    "#prompt .token",
    "#prompt .special .id",
    "#prompt .id",
    "#prompt .sign",
    "#prompt .image span",
    "#key .fault",
]


def test_every_file_of_the_page_is_served_with_a_policy_without_inline_code(chat: FakeChat) -> None:
    app = app_of(chat)
    page = get(app, "/")
    assert page.status == 200
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    named = {"/" + name for name in re.findall(r'(?:href|src)="(page/[^"]+)"', page.text)}
    scripts = [path for path in FOLDER.iterdir() if path.suffix == ".js"]
    imported = {f"/page/{name}" for path in scripts for name in re.findall(r'from "\./([^"]+)"', path.read_text())}
    served = {route.path for route in page_routes()} - {"/"}
    assert named | imported == served
    for address in served:
        answer = get(app, address)
        assert (answer.status, bool(answer.body)) == (200, True)
        assert answer.headers["content-security-policy"] == page.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|https?:", page.text)


def fill(page: Any, chat: FakeChat) -> None:
    """A conversation in which everything is shown once, at the same time."""
    chat.answers = [chat.pieces("An answer \x1b of some words.", cached=5), fault(500, "out of memory")]
    chat.prompt = {"ids": [1, 5, 5, 2], "tokens": ["<s>", "i", "i", " a"], "control_ids": [1, 2], "limit": 64}
    chat.prompt["images"] = [{"first": 1, "positions": 2, "tiles": 1}]
    choose(page, red=RED, wide=WIDE)
    ask(page, "A question with an image?")
    ask(page, "And " + "w" * 400)
    page.locator("#text").fill("a draft")
    choose(page, red=RED)
    page.locator(".answer [data-part=ids]").first.click()
    page.wait_for_selector("#prompt[open]")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_the_page_is_readable_in_both_colours_at_any_width(
    chromium: Chromium, chat: FakeChat, width: int, dark: bool
) -> None:
    def check(page: Any) -> None:
        assert is_accessible(page) == []
        fill(page, chat)
        assert is_accessible(page) == []
        ratios = contrasts(page, COLOURED)
        assert ratios.keys() == {*COLOURED}
        assert {selector: ratio for selector, ratio in ratios.items() if ratio < 4.5} == {}
        page.keyboard.press("Escape")
        for opener, dialog in (("#open-settings", "#settings"), (".question .pictures button", "#picture")):
            page.locator(opener).first.click()
            page.wait_for_selector(f"{dialog}[open]")
            assert is_accessible(page) == []
            assert page.evaluate("document.querySelector('dialog[open]').getBoundingClientRect().right <= innerWidth")
            page.keyboard.press("Escape")
        for button in page.locator("button:visible").all():
            box = button.bounding_box()
            assert min(box["width"], box["height"]) >= 24, button.inner_text()  # WCAG 2.2, target size
            assert button.inner_text() or button.get_attribute("aria-label") or button.locator("img").count(), box

    chromium.look(chat.address, check, width=width, dark=dark, failures=(500,))


def test_the_switch_overrules_the_system_and_is_kept_but_follows_it_again(chromium: Chromium, chat: FakeChat) -> None:
    def check(page: Any) -> None:
        def paper() -> str:
            return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

        light, shot = paper(), page.screenshot()
        page.locator("#theme").click()
        dark = paper()
        assert dark != light
        assert page.screenshot() != shot
        assert page.locator("#theme").get_attribute("aria-pressed") == "true"
        page.reload()
        assert paper() == dark
        page.emulate_media(color_scheme="dark")
        assert paper() == dark
        page.locator("#theme").click()
        assert paper() == light
        page.emulate_media(color_scheme="light")
        page.locator("#theme").click()
        page.locator("#theme").click()
        assert paper() == light
        page.emulate_media(color_scheme="dark")
        assert paper() == dark

    chromium.look(chat.address, check)


def test_everything_is_reached_with_the_keyboard(chromium: Chromium, chat: FakeChat) -> None:
    def check(page: Any) -> None:
        ask(page, "First?")
        page.locator(".skip").focus()
        reached = []
        for _ in range(11):
            reached.append(
                page.evaluate(
                    """() => {
                        const { innerText, ariaLabel, id } = document.activeElement;
                        return innerText.trim() || ariaLabel || id;
                    }"""
                )
            )
            page.keyboard.press("Tab")
        expected = ["Skip to the question", "New conversation", "Export", "Settings", "Dark colours", "Edit", "Copy"]
        expected += ["Try again", "Token ids", "text", "Add images"]
        assert reached == expected
        page.locator("#open-settings").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#settings[open]")
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.id") == "open-settings"

    chromium.look(chat.address, check)


def test_dragging_files_shows_where_they_may_be_dropped(chromium: Chromium, chat: FakeChat) -> None:
    def check(page: Any) -> None:
        transfer = page.evaluate_handle(
            """() => {
                const transfer = new DataTransfer();
                transfer.items.add(new File(["x"], "x.png", { type: "image/png" }));
                return transfer;
            }"""
        )
        page.dispatch_event("main", "dragover", {"dataTransfer": transfer})
        assert page.locator("#dropping").is_visible()
        page.dispatch_event("main", "dragleave", {"dataTransfer": transfer})
        assert page.locator("#dropping").is_hidden()

    chromium.look(chat.address, check)
