"""Take the screenshots of README and docs: real pages of the example build and run, in Debian's chromium.

python -m tools.screenshots        # writes docs/figures/view-*.webp
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.browser import Chromium, running_chromium

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs/figures"
WIDTH, PHONE_WIDTH = 1100, 390


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run("build", "--blend", str(ROOT / "examples/blend.yaml"), "--out", str(folder / "build"))
        run("stats", str(folder / "build"), "--html", str(folder / "report.html"))
        other = ["--set", "template=vicuna"]
        run("build", "--blend", str(ROOT / "examples/blend.yaml"), "--out", str(folder / "other"), *other)
        run("diff", str(folder / "build"), str(folder / "other"), "--html", str(folder / "diff.html"))
        run_folder = ["--set", f"build={folder / 'build'}", "--set", f"out={folder / 'run'}"]
        run("run", "--config", str(ROOT / "examples/train.yaml"), *run_folder, program="trainer.cli")
        run("report", str(folder / "run"), "--html", str(folder / "training.html"), program="trainer.cli")
        command = [sys.executable, "-m", "preprocess.cli", "view", "build", "--port", "0"]
        blend = ["--blend", str(ROOT / "examples/blend.yaml")]
        server = subprocess.Popen([*command, *blend], cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        address = server.stdout.readline().split(" is at ")[1].split()[0]
        browsers = running_chromium()
        browser = next(browsers)
        take(browser, f"{address}?order=most-images", "gallery", height=900)
        take(browser, f"{address}sample/sparkles-000000000", "sample", height=900)
        take(browser, f"{address}sample/sparkles-000000000", "sample-dark", height=900, dark=True)
        take(browser, f"{address}sample/sparkles-000000000", "sample-phone", height=844, width=PHONE_WIDTH)
        take(browser, f"{address}reject/0", "reject", height=900)
        take(browser, f"{address}sequences?chosen=0&token=300", "sequences", height=1150)
        take(browser, f"file://{folder / 'report.html'}", "report", height=1000)
        take(browser, f"file://{folder / 'diff.html'}", "diff", height=1000)
        take(browser, f"file://{folder / 'training.html'}", "training", height=1300)
        next(browsers, None)
        server.terminate()
        server.wait()


def take(browser: Chromium, address: str, name: str, *, height: int, width: int = WIDTH, dark: bool = False) -> None:
    """Write the top of a page as view-NAME.webp."""

    def shoot(page: Any) -> bytes:
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_load_state("networkidle")
        return bytes(page.screenshot())

    picture = Image.open(io.BytesIO(browser.look(address, shoot, width=width, dark=dark)))
    picture.convert("RGB").save(FIGURES / f"view-{name}.webp", quality=80, method=6)


def run(*arguments: str, program: str = "preprocess.cli") -> None:
    subprocess.run(
        [sys.executable, "-m", program, *arguments], check=True, env=environment(), stdout=subprocess.DEVNULL
    )


def environment() -> dict[str, str]:
    """The commands run this tree, from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


if __name__ == "__main__":
    main()
