"""`overlap --html` shows the pairs side by side, in a file that needs no network and runs nothing."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from preprocess.views import overlap_page
from preprocess.views.overlap import find_overlap
from preprocess.views.overlap_page import write_overlap_page
from tests.support.commands import dsvl_prep
from tests.support.in_process import in_this_process
from tests.support.small_blends import build, chat_blend, chat_record, jpeg

HOSTILE = "<script>alert(1)</script>"


def page_of(first: Path, second: Path, folder: Path) -> str:
    path = folder / "pairs.html"
    write_overlap_page(path, find_overlap(first, second, engine=in_this_process), first, second)
    return path.read_text(encoding="utf-8")


def shown_sizes(page: str) -> list[tuple[int, int]]:
    sizes = []
    for data in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page):
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            sizes.append(image.size)
    return sizes


def test_images_of_a_folder_and_of_a_build_are_shown_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.jpg").write_bytes(jpeg(1, (60, 40)))
    build(chat_blend(tmp_path, [chat_record(0, images=["a.jpg"])]))
    (tmp_path / "own/deep").mkdir(parents=True)
    (tmp_path / "own/deep/copy.jpg").write_bytes(jpeg(1, (60, 40)))
    page = page_of(tmp_path / "own", tmp_path / "build", tmp_path)
    assert shown_sizes(page) == [(60, 40), (60, 40)]
    assert "deep/copy.jpg" in page
    assert ".tar/mine-000000000.0.jpg" in page
    assert "(bytes 1, pixels 0, near 0)" in " ".join(page.split())
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")


def test_texts_from_data_are_escaped_and_scripts_are_forbidden(tmp_path: Path) -> None:
    question = f"Why does {HOSTILE} stand in this question of more than thirteen words, which both of them have?"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{HOSTILE.replace('/', '|')}.jpg").write_bytes(jpeg(1))
        (tmp_path / name / "q.jsonl").write_text(json.dumps({"question": question}))
    page = page_of(tmp_path / "a", tmp_path / "b", tmp_path)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_the_page_says_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap_page, "MAX_PAIRS", 2)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.jpg").write_bytes(jpeg(number))
    page = page_of(tmp_path / "a", tmp_path / "b", tmp_path)
    assert len(shown_sizes(page)) == 4
    assert "The first 2 pairs are shown; <code>--json</code> lists all." in page


def test_an_image_that_cannot_be_shown_has_its_reason(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cut.jpg").write_bytes(jpeg(1)[:300])
    page = page_of(tmp_path / "a", tmp_path / "b", tmp_path)
    assert shown_sizes(page) == []
    assert page.count("cannot be shown: ") == 2


def test_the_command_writes_it_besides_what_it_prints(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(jpeg(1))
    done = dsvl_prep("overlap", tmp_path / "a", tmp_path / "b", "--html", tmp_path / "pairs.html")
    assert done.returncode == 0
    assert "1 of the first are in the second" in done.stdout
    assert len(shown_sizes((tmp_path / "pairs.html").read_text(encoding="utf-8"))) == 2


def test_a_page_in_a_folder_that_does_not_exist_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    page = tmp_path / "nowhere/pairs.html"
    done = dsvl_prep("overlap", tmp_path / "a", tmp_path / "a", "--html", page)
    assert done.returncode == 2
    step = f"there is no folder {page.parent}; make it, or name a file in another one"
    assert done.stderr.endswith(f"Error: Invalid value for '--html': {step}\n")
