"""Take the screenshots of README and docs: real pages of the example build, run and model, in Debian's chromium.

python -m tools.screenshots             # writes docs/figures/view-*.webp and chat-*.webp
python -m tools.screenshots chat        # only those of the chat page; or view
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.browser import Chromium, running_chromium
from tests.support.chat_pages import ask

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs/figures"
WIDTH, PHONE_WIDTH = 1100, 390


CONVERSATIONS = """
tokenizer: {examples}/tokenizer
template: visualchat
image_tokens: 144
datasets:
  - {{name: details, adapter: llava, root: {examples}/data, samples: all}}
  - {{name: dialogues, adapter: llava_dial, root: {examples}/data, samples: all}}
"""
"""Ten of the examples' conversations, few enough for the tiny model to learn them by heart"""
BY_HEART = ["schedule.steps=150", "checkpoints.every=150", "evaluation.every=0"]
FAST = [f"learning_rates.{part}=3e-3" for part in ("encoder", "projector", "embeddings", "decoder")]


def main() -> None:
    parts = {"view": view_pages, "chat": chat_pages}
    browsers = running_chromium()
    browser = next(browsers)
    for name in sys.argv[1:] or parts:
        with tempfile.TemporaryDirectory() as scratch:
            parts[name](browser, Path(scratch))
    next(browsers, None)


def view_pages(browser: Chromium, folder: Path) -> None:
    """The viewer, and the reports of builds and runs."""
    run("build", "--blend", str(ROOT / "examples/blend.yaml"), "--out", str(folder / "build"))
    run("stats", str(folder / "build"), "--html", str(folder / "report.html"))
    other = ["--set", "template=vicuna"]
    run("build", "--blend", str(ROOT / "examples/blend.yaml"), "--out", str(folder / "other"), *other)
    run("diff", str(folder / "build"), str(folder / "other"), "--html", str(folder / "diff.html"))
    run_folder = ["--set", f"build={folder / 'build'}", "--set", f"out={folder / 'run'}"]
    run("run", "--config", str(ROOT / "examples/train.yaml"), *run_folder, program="trainer.cli")
    run("report", str(folder / "run"), "--html", str(folder / "training.html"), program="trainer.cli")
    command = ["preprocess.cli", "view", "build", "--port", "0", "--blend", str(ROOT / "examples/blend.yaml")]
    with serving(command, folder) as address:
        take(browser, f"{address}?order=most-images", "view-gallery", height=900)
        take(browser, f"{address}sample/sparkles-000000000", "view-sample", height=900)
        take(browser, f"{address}sample/sparkles-000000000", "view-sample-dark", height=900, dark=True)
        take(browser, f"{address}sample/sparkles-000000000", "view-sample-phone", height=844, width=PHONE_WIDTH)
        take(browser, f"{address}reject/0", "view-reject", height=900)
        take(browser, f"{address}sequences?chosen=0&token=300", "view-sequences", height=1150)
    take(browser, f"file://{folder / 'report.html'}", "view-report", height=1000)
    take(browser, f"file://{folder / 'diff.html'}", "view-diff", height=1000)
    take(browser, f"file://{folder / 'training.html'}", "view-training", height=1300)


def chat_pages(browser: Chromium, folder: Path) -> None:
    """The chat page, with a model that learned a few conversations by heart."""
    (folder / "blend.yaml").write_text(CONVERSATIONS.format(examples=ROOT / "examples"), encoding="utf-8")
    run("build", "--blend", str(folder / "blend.yaml"), "--out", str(folder / "build"))
    settings = [f"build={folder / 'build'}", f"out={folder / 'run'}", *BY_HEART, *FAST]
    options = [word for setting in settings for word in ("--set", setting)]
    run("run", "--config", str(ROOT / "examples/train.yaml"), *options, program="trainer.cli")
    run("export", "--model", str(folder / "run"), "--out", str(folder / "tiny-visualchat"), program="trainer.cli")
    command = ["trainer.cli", "serve", "--model", "tiny-visualchat", "--port", "0", "--temperature", "0"]
    with serving(command, folder) as address:
        take(browser, address, "chat-page", height=760, act=converse)
        take(browser, address, "chat-page-phone", height=844, width=PHONE_WIDTH, dark=True, act=converse)
        take(browser, address, "chat-page-ids", height=620, act=show_ids)


def converse(page: Any) -> None:
    """Two rounds about a cup, once the model is loaded."""
    page.wait_for_selector("h1:has-text('tiny-visualchat')")
    page.locator("#file").set_input_files(ROOT / "examples/data/coco/train2017/000000000104.jpg")
    while page.request.get(f"{page.url}health").status != 200:
        page.wait_for_timeout(100)
    ask(page, "What is in the cup?")
    ask(page, "What is the table made of?")
    page.mouse.move(0, 0)


def show_ids(page: Any) -> None:
    converse(page)
    page.locator(".answer [data-part=ids]").first.click()
    page.wait_for_selector("#prompt img")


@contextlib.contextmanager
def serving(command: Sequence[str], folder: Path) -> Iterator[str]:
    """The address of a server that runs until the block ends."""
    server = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        yield server.stdout.readline().split(" is at ")[1].split()[0]
    finally:
        server.terminate()
        server.wait()


def take(
    browser: Chromium,
    address: str,
    name: str,
    *,
    height: int,
    width: int = WIDTH,
    dark: bool = False,
    act: Callable[[Any], None] = lambda page: None,
) -> None:
    """Write what a window shows of a page as NAME.webp. act: gets the page first, as playwright.sync_api.Page."""

    def shoot(page: Any) -> bytes:
        page.set_viewport_size({"width": width, "height": height})
        act(page)
        page.wait_for_load_state("networkidle")
        return bytes(page.screenshot())

    picture = Image.open(io.BytesIO(browser.look(address, shoot, width=width, dark=dark)))
    picture.convert("RGB").save(FIGURES / f"{name}.webp", quality=80, method=6)


def run(*arguments: str, program: str = "preprocess.cli") -> None:
    subprocess.run(
        [sys.executable, "-m", program, *arguments], check=True, env=environment(), stdout=subprocess.DEVNULL
    )


def environment() -> dict[str, str]:
    """The commands run this tree, from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


if __name__ == "__main__":
    main()
