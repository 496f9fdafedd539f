"""Pages in a real browser: Debian's chromium, driven by Playwright.

Playwright runs in a thread of its own, since it leaves that thread with a running event loop. A check gets the page and
runs in that thread; what it raises, the test raises. A page that writes errors to its console, fails in its script or
asks another address than its own fails as well.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_MS = 60_000

T = TypeVar("T")


class Chromium:
    """A browser without a window."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="playwright")
        self._thread.submit(self._start).result()

    def look(
        self,
        address: str,
        check: Callable[[Any], T],
        *,
        width: int = 1200,
        dark: bool = False,
        failures: tuple[int, ...] = (),
    ) -> T:
        """What `check(page)` returns for a page of this width, in CSS pixels. page: playwright.sync_api.Page.

        failures: HTTP statuses of requests that are meant to fail; the browser writes an error for each.
        """
        return self._thread.submit(self._look, address, check, width, dark, failures).result()

    def close(self) -> None:
        self._thread.submit(self._stop).result()
        self._thread.shutdown()

    def _start(self) -> None:
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        flags = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        self._browser = self._playwright.chromium.launch(executable_path=self._path, args=flags)

    def _stop(self) -> None:
        self._browser.close()
        self._playwright.stop()

    def _look(self, address: str, check: Callable[[Any], T], width: int, dark: bool, failures: tuple[int, ...]) -> T:
        origin = address if address.startswith("file:") else "/".join(address.split("/")[:3]) + "/"
        faults: list[str] = []
        context = self._browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light"
        )
        context.set_default_timeout(TIMEOUT_MS)
        try:
            page = context.new_page()

            def note_error(message: Any) -> None:
                is_meant = any(
                    f"the server responded with a status of {status} " in message.text for status in failures
                )
                if message.type == "error" and not is_meant:
                    faults.append(f"console: {message.text}")

            page.on("console", note_error)
            page.on("pageerror", lambda error: faults.append(f"script: {error}"))

            def pass_own(route: Any) -> None:
                url = route.request.url
                if url.startswith((origin, "data:", f"blob:{origin}")) or url.split("#")[0] == origin.split("#")[0]:
                    route.continue_()
                else:
                    faults.append(f"asked for {url}")
                    route.abort()

            page.route("**/*", pass_own)
            page.goto(address)
            result = check(page)
            assert not faults, faults
            return result
        finally:
            context.close()


def is_accessible(page: Any) -> list[str]:
    """What makes a page hard to use for people who do not see it, or on a phone; [] if nothing was found."""
    faults: list[str] = page.evaluate(
        """() => {
            const faults = [];
            for (const image of document.querySelectorAll("img:not([alt]), [role=img]:not([aria-label])"))
                faults.push(`no alternative text: ${image.outerHTML.slice(0, 80)}`);
            for (const field of document.querySelectorAll("input:not([type=hidden]), select, textarea"))
                if (!field.labels.length) faults.push(`no label: ${field.outerHTML.slice(0, 80)}`);
            let level = 0;
            for (const heading of document.querySelectorAll("h1, h2, h3, h4")) {
                const next = Number(heading.tagName[1]);
                if (next > level + 1) faults.push(`heading ${next} after ${level}: ${heading.textContent}`);
                level = next;
            }
            if (!document.documentElement.lang || !document.title || !document.querySelector("main"))
                faults.push("no language, title or main part");
            if (document.documentElement.scrollWidth > window.innerWidth)
                faults.push(`wider than the window: ${document.documentElement.scrollWidth} of ${window.innerWidth}`);
            return faults;
        }"""
    )
    return faults


def contrasts(page: Any, selectors: list[str]) -> dict[str, float]:
    """Contrast ratio of text and background (WCAG 2, 1 to 21) of the first element of each selector."""
    ratios: dict[str, float] = page.evaluate(
        """(selectors) => {
            const parse = (colour) => colour.match(/[0-9.]+/g).map(Number);
            const light = (colour) => {
                const [r, g, b] = parse(colour).slice(0, 3).map((part) => part / 255)
                    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const behind = (element) => {
                for (; element; element = element.parentElement) {
                    const colour = getComputedStyle(element).backgroundColor;
                    if (parse(colour)[3] !== 0) return colour;
                }
                return "rgb(255, 255, 255)";
            };
            const ratios = {};
            for (const selector of selectors) {
                const element = document.querySelector(selector);
                if (!element) continue;
                const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
                ratios[selector] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            }
            return ratios;
        }""",
        selectors,
    )
    return ratios


def running_chromium() -> Iterator[Chromium]:
    """For a fixture of a whole test run; skips where there is no browser."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("there is no chromium on the PATH to look at pages with; see CONTRIBUTING.md")
    pytest.importorskip("playwright")
    browser = Chromium(path)
    yield browser
    browser.close()
