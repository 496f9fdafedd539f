"""`inspect --html`: sample pages as one file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support.commands import dsvl_prep
from tests.support.small_blends import build, chat_blend, chat_record, write_images

HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    names = write_images(folder / "mine", 4)
    records = [chat_record(number, images=names[: number % 4 + 1], rounds=1 + number % 2) for number in range(6)]
    records[1]["messages"][1]["content"] = HOSTILE
    records.append(chat_record(9, images=["absent.jpg", names[0]]))
    build(chat_blend(folder, records, limits={"max_reject_share": 1.0}))
    return folder


def page(folder: Path, *options: str | int) -> str:
    done = dsvl_prep("inspect", folder / "build", "--html", folder / "out.html", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return (folder / "out.html").read_text(encoding="utf-8")


def test_the_page_has_the_samples_with_their_images_and_needs_no_network(folder: Path) -> None:
    html = page(folder, "--limit", 9)
    assert html.count("<article") == 6
    assert html.count('src="data:image/jpeg;base64,') == html.count("<img") == sum(n % 4 + 1 for n in range(6))
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert "default-src &#39;none&#39;" in html
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in html
    assert html.count("<script") == 1


@pytest.mark.parametrize("choice", ["random", "longest", "shortest", "most-images"])
def test_the_samples_shown_are_those_asked_for(folder: Path, choice: str) -> None:
    html = page(folder, "--sample", choice, "--limit", 2)
    assert html.count("<article") == 2
    if choice == "most-images":
        assert html.count("<img") == 4 + 3
    assert html == page(folder, "--sample", choice, "--limit", 2)


def test_rejects_are_shown_with_reason_record_and_images_or_their_fault(folder: Path) -> None:
    html = page(folder, "--sample", "rejects")
    assert html.count("<article") == 1
    assert "the image store does not have the image" in html
    assert "&#34;id&#34;: &#34;r9&#34;" in html
    assert html.count("cannot be shown") == 1
    assert html.count('src="data:image/jpeg') == 1


def test_filters_and_a_key_choose_samples(folder: Path) -> None:
    assert page(folder, "--key", "mine-000000002").count("<article") == 1
    missing = dsvl_prep("inspect", folder / "build", "--html", folder / "out.html", "--key", "nobody", cwd=folder)
    assert missing.returncode == 1
    assert "no sample of nobody" in missing.stderr


def test_a_damaged_sample_is_a_fault_in_its_place(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "build", tmp_path / "build")
    tar = max((tmp_path / "build/shards/mine").glob("*.tar"), key=lambda path: path.stat().st_size)
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    html = page(tmp_path, "--limit", 9)
    assert html.count("<article") == 6
    assert html.count("This sample cannot be read") == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--html", "absent/out.html"), "there is no folder absent"),
        (("--sample", "random"), "have no effect without --html"),
        (("--html", "out.html", "--json"), "expected one of them"),
        (("--html", "out.html", "--dataset", "other"), "no dataset other; this build has mine"),
        (("--html", "out.html", "--sample", "rejects", "--blend", "absent.yaml"), "there is no such file"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_the_work(folder: Path, options: tuple[str, ...], says: str) -> None:
    done = dsvl_prep("inspect", "build", *options, cwd=folder)
    assert done.returncode == 2
    assert says in done.stderr
