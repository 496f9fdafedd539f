"""The chat page that Gradio makes for a server of OpenAI's API, used in a browser as a person does."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.browser import NAMES
from tests.support.waiting import wait_until

PROGRAM = """
import sys
import gradio

url, key, port = sys.argv[1:]
page = gradio.load_chat(url, model="tiny", token=key, file_types=["image"])
page.launch(server_port=int(port), quiet=True)
"""
QUESTIONS = ("What is this?", "Why?")


def answers_about(photo: Path, python: Path, url: str, key: str) -> list[str]:
    """The answers that the page shows to an image with a question, and to a second question.

    python: of an environment with gradio. url: of the API.
    """
    from playwright.sync_api import sync_playwright

    with _page(python, url, key, photo.parent) as address, sync_playwright() as playwright:
        flags = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        path = next(path for name in NAMES if (path := shutil.which(name)))
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(address)
        box, shown = page.get_by_role("textbox").first, page.get_by_test_id("bot")
        box.wait_for()
        page.locator("input[type=file]").first.set_input_files(photo)
        page.locator("img[src*=photo]").first.wait_for()
        for number, question in enumerate(QUESTIONS):
            box.fill(question)
            box.press("Enter")
            shown.nth(number).wait_for()
            page.locator("button[aria-label=Undo]").wait_for()  # is there once the answer has ended
        answers = [answer.inner_text() for answer in shown.all()]
        browser.close()
    return answers


@contextmanager
def _page(python: Path, url: str, key: str, folder: Path) -> Iterator[str]:
    """The address of a page for the server, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(python), "-c", PROGRAM, url, key, str(port)]
    process = subprocess.Popen(command, cwd=folder, env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"})
    address = f"http://127.0.0.1:{port}/"

    def listens() -> bool:
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address).close()
        except OSError:
            time.sleep(0.3)
            return process.poll() is not None
        return True

    try:
        wait_until(listens)
        yield address
    finally:
        process.kill()
        process.wait()
