"""Damaged, replaced and half-written builds in the web app: faults in their place."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from preprocess.viewer import opened_build
from tests.support.commands import dsvl_prep
from tests.support.small_blends import build, chat_blend, chat_record, jpeg, write_images
from tests.support.viewed_builds import app_of


def test_an_answer_of_two_megabytes_is_cut_and_can_be_seen_whole(tmp_path: Path) -> None:
    record = chat_record(1)
    record["messages"][1]["content"] = "word " * 400_000
    build(chat_blend(tmp_path, [record], limits={"max_length": 3_000_000}))
    ask = app_of(tmp_path)
    cut = ask("/number/0")
    assert len(cut.body) < 50_000
    assert re.search(r"\(1,9\d\d,\d{3} more characters\)", cut.text)
    (whole,) = re.findall(r'href="([^"]+)">Show the whole text', cut.text)
    assert ask(whole).text.count("word") == 400_000
    assert "later tokens" in ask("/tokens/0?start=1000").text


def damage(folder: Path, copy: Path) -> None:
    """Copy the build and flip a bit in its fourth sample."""
    shutil.copytree(folder, copy)
    index = json.loads((copy / "build/manifest.json").read_text(encoding="utf-8"))
    tar = copy / "build" / index["datasets"]["mine"]["shards"]["train"][0]["path"]
    content = bytearray(tar.read_bytes())
    content[content.index(b"Answer 0 of record 2") if b"Answer 0 of record 2" in content else 700] ^= 1
    tar.write_bytes(content)


def test_a_damaged_sample_shows_its_fault_in_its_place_and_its_neighbours_work(folder: Path, tmp_path: Path) -> None:
    damage(folder, tmp_path / "copy")
    ask = app_of(tmp_path / "copy")
    gallery = ask("/").text
    assert gallery.count('<li class="card">') == 24
    assert gallery.count("is damaged") == 1
    number = re.search(r'<a href="/number/(\d+)[^"]*">sample ', gallery)
    assert number is not None
    page = ask(f"/number/{number[1]}")
    assert page.status == 200
    assert "This sample cannot be read" in page.text
    assert "is damaged" in page.text
    assert 'rel="next"' in page.text
    assert b"is damaged" in ask(f"/image/{number[1]}/0").body


def test_an_image_that_cannot_be_decoded_is_a_fault_in_its_place(tmp_path: Path) -> None:
    write_images(tmp_path / "mine", 2)
    whole = jpeg(1, size=(320, 240))
    (tmp_path / "mine/1.jpg").write_bytes(whole[: len(whole) // 2])
    build(chat_blend(tmp_path, [chat_record(0, images=["0.jpg", "1.jpg"])], image={"check": "header"}))
    ask = app_of(tmp_path)
    assert ask("/number/0").status == 200
    assert ask("/image/0/0").headers["content-type"] == "image/jpeg"
    fault = ask("/image/0/1")
    assert fault.headers["content-type"] == "image/svg+xml"
    assert b"truncated" in fault.body
    assert dsvl_prep("inspect", "build", "--html", "out.html", cwd=tmp_path).returncode == 0
    html = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "image 2 cannot be shown" in html
    assert html.count('src="data:image/jpeg') == 1


def test_half_written_and_newer_builds_are_refused_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "half/shards").mkdir(parents=True)
    assert "it is not a finished build" in dsvl_prep("view", "half", "--port", 0, cwd=tmp_path).stderr
    (tmp_path / "newer").mkdir()
    manifest = (folder / "build/manifest.json").read_text(encoding="utf-8").replace('"version": 1', '"version": 4')
    (tmp_path / "newer/manifest.json").write_text(manifest, encoding="utf-8")
    for command in (("view", "newer", "--port", 0), ("inspect", "newer", "--html", "out.html")):
        done = dsvl_prep(*command, cwd=tmp_path)
        assert done.returncode == 1
        assert "version" in done.stderr


def test_an_edited_list_of_rejects_is_a_fault_of_its_page_alone(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    with (tmp_path / "copy/build/rejects.jsonl").open("a") as file:
        file.write("{}\n")
    ask = app_of(tmp_path / "copy")
    assert "it was edited or damaged" in ask("/rejects").text


def test_a_file_that_is_deleted_while_it_is_looked_at_is_a_fault_of_its_page(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    ask = app_of(tmp_path / "copy")
    assert ask("/rejects").status == 200
    (tmp_path / "copy/build/rejects.jsonl").unlink()
    gone = ask("/rejects")
    assert gone.status == 500
    assert "a file of the build cannot be read" in gone.text
    assert ask("/").status == 200


def test_a_build_that_is_replaced_or_deleted_is_noticed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened_build, "_CHECK_EVERY_S", -1.0)
    shutil.copytree(folder, tmp_path / "copy")
    ask = app_of(tmp_path / "copy")
    assert "24 samples" in ask("/").text
    build(chat_blend(tmp_path / "copy", [chat_record(1)]))
    assert "1 samples" in ask("/").text
    shutil.rmtree(tmp_path / "copy/build")
    gone = ask("/")
    assert gone.status == 500
    assert "the build is gone" in gone.text
    build(chat_blend(tmp_path / "copy", [chat_record(1), chat_record(2)]))
    assert "2 samples" in ask("/").text
