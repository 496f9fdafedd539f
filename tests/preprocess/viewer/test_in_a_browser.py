"""The viewer as people use it: the command, and its pages in a real browser."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from tests.support.browser import Chromium, contrasts, is_accessible
from tests.support.commands import dsvl_prep
from tests.support.small_blends import build, chat_blend, chat_record, write_images
from tests.support.waiting import LIMIT_S

HOSTILE = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    names = write_images(folder / "mine", 4)
    records = [chat_record(number, images=names[: number % 3 + 1]) for number in range(30)]
    records[2]["messages"][1]["content"] = HOSTILE
    records[2]["id"] = HOSTILE
    records[5]["messages"][1]["content"] = "a needle in the haystack, שלום עולם"
    records.append(chat_record(90, images=[f"{HOSTILE[:30]}.jpg", names[0]]))
    build(chat_blend(folder, records, limits={"max_reject_share": 1.0}))
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """The address that `dsvl-prep view` prints; it ends by Ctrl-C with 0."""
    command = [sys.executable, "-m", "preprocess.cli", "view", "build", "--port", "0"]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    started = re.fullmatch(r"build is at (http://127\.0\.0\.1:\d+/) \(Ctrl-C to stop\)\n", server.stdout.readline())
    assert started is not None
    yield started[1]
    server.send_signal(signal.SIGINT)
    _, errors = server.communicate(timeout=LIMIT_S)
    assert (server.returncode, errors) == (0, "stopped\n")


def test_keys_and_links_lead_from_sample_to_sample_and_back(chromium: Chromium, address: str) -> None:
    def check(page: Any) -> None:
        def press(key: str) -> str:
            """The heading of the page that a key leads to, once its script has run."""
            with page.expect_navigation():
                page.keyboard.press(key)
            return str(page.locator("h1").inner_text())

        with page.expect_navigation():
            page.locator(".card a").first.click()
        first = page.locator("h1").inner_text()
        for key, back in (("ArrowRight", "ArrowLeft"), ("j", "k")):
            assert press(key) != first
            assert press(back) == first
        assert press("u") == "Samples"
        page.locator("input[name=text]").press_sequentially("juk")
        assert page.locator("input[name=text]").input_value() == "juk"
        assert page.locator(".cards").count() == 1

    chromium.look(address, check)


def test_filters_search_tokens_and_the_record_work(chromium: Chromium, address: str) -> None:
    def check(page: Any) -> None:
        page.locator("input[name=text]").fill("needle")
        page.locator("button").click()
        page.wait_for_url("**text=needle**")
        page.wait_for_selector("a[data-continue]", state="detached")  # the search went on by itself to its end
        assert page.locator(".card").count() == 1
        with page.expect_navigation():
            page.locator(".card a").click()
        page.locator("summary", has_text="Tokens").click()
        page.wait_for_selector("details table")
        assert page.locator("details td", has_text="image 1").count() == 1
        page.locator("summary", has_text="record as it was read").click()
        page.wait_for_selector("details[data-load^='/record'] pre")
        assert "needle" in page.locator("details[data-load^='/record'] pre").inner_text()
        page.locator("img").first.scroll_into_view_if_needed()
        page.wait_for_function("() => [...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        page.locator("a", has_text="its sequence").click()
        page.wait_for_selector("svg.mask")

    chromium.look(address, check)


def test_text_and_names_of_data_stay_text(chromium: Chromium, address: str) -> None:
    def check(page: Any) -> None:
        assert page.title() != "run"
        page.goto(f"{address}?text=document.title")
        page.locator(".card a").click()
        assert "<script>document.title" in page.locator(".trained").first.inner_text()
        assert page.title() != "run"
        page.goto(f"{address}rejects")
        page.locator(".card a").click()
        page.wait_for_selector("pre")
        assert page.locator(".placed .fault").count() == 1
        assert page.locator(".placed img").count() == 1
        assert page.title() != "run"

    chromium.look(address, check)


def test_pages_are_accessible_on_a_phone_and_in_the_dark(chromium: Chromium, address: str) -> None:
    selectors = ["h1", ".quiet", "a", ".text .trained", ".control", ".role", ".fault", "button", "figcaption"]

    def check(page: Any) -> None:
        for path in ("", "number/0", "tokens/0", "record/0", "rejects", "reject/0", "sequences?chosen=0"):
            page.goto(address + path)
            assert is_accessible(page) == [], path
            low = {name: ratio for name, ratio in contrasts(page, selectors).items() if ratio < 4.5}
            assert not low, path

    chromium.look(address, check, width=375, dark=True)
    chromium.look(address, check)


def test_a_file_of_samples_works_without_a_server(chromium: Chromium, folder: Path) -> None:
    assert dsvl_prep("inspect", "build", "--html", "out.html", "--limit", 9, cwd=folder).returncode == 0

    def check(page: Any) -> None:
        assert page.title() != "run"
        assert page.locator("article").count() == 9
        page.keyboard.press("j")
        page.keyboard.press("j")
        assert page.evaluate("location.hash") == f"#{page.locator('article').nth(1).get_attribute('id')}"
        assert is_accessible(page) == []

    chromium.look(f"file://{folder / 'out.html'}", check, width=375, dark=True)


def test_a_port_that_is_taken_and_a_build_that_is_none_are_refused(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = dsvl_prep("view", "build", "--port", taken.getsockname()[1], cwd=folder)
    assert done.returncode == 2
    assert "choose another with --port" in done.stderr
    elsewhere = dsvl_prep("view", "build", "--host", "192.0.2.1", "--port", 0, cwd=folder)
    assert (elsewhere.returncode, "expected an address of this machine" in elsewhere.stderr) == (2, True)
    assert "it is not a finished build" in dsvl_prep("view", "mine", cwd=folder).stderr
    absent = dsvl_prep("view", "build", "--blend", "absent.yaml", cwd=folder)
    assert absent.returncode == 2
    assert "there is no such file" in absent.stderr
