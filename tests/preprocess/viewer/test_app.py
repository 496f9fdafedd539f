"""The web app of a build: what it shows, what it refuses, and faults in their place."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from preprocess.viewer import opened_build, rejects, selection
from preprocess.viewer.app import host_name, make_app
from preprocess.viewer.opened_build import OpenedBuilds
from preprocess.viewer.server import own_hosts
from tests.support.asgi_client import Answer, get
from tests.support.commands import dsvl_prep
from tests.support.small_blends import build, chat_blend, chat_record, jpeg, write_images

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202eabc"
Ask = Callable[..., Answer]


def records() -> list[dict[str, Any]]:
    """Thirty records: a hostile one, a long one, one of forty images, three rejects."""
    made = [chat_record(number, images=[f"{number % 5}.jpg"], rounds=1 + number % 3) for number in range(24)]
    made[3]["messages"][1]["content"] = HOSTILE
    made[4]["messages"][1]["content"] = "word " * 9000
    made[5] = chat_record(5, images=[f"{number % 5}.jpg" for number in range(40)])
    made[6]["messages"][0]["content"] += " שלום עולם e\u0301\u0323 ﷽"
    return [
        *made,
        chat_record(90, images=["absent.jpg"]),
        chat_record(91, images=[HOSTILE[:20] + ".jpg"]),
        {"id": "r92", "messages": []},
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("viewed")
    write_images(folder / "mine", 5)
    limits = {"max_length": 60_000, "max_images": 40, "max_reject_share": 1.0}
    build(chat_blend(folder, records(), limits=limits))
    return folder


def app_of(folder: Path) -> Ask:
    app = make_app(OpenedBuilds(folder / "build"), is_own=own_hosts("127.0.0.1"), bases=(folder,))

    def ask(address: str, **options: Any) -> Answer:
        return get(app, address, **options)

    return ask


@pytest.fixture(scope="module")
def ask(folder: Path) -> Ask:
    return app_of(folder)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that does other work as well finds as much."""
    for module in (selection, rejects):
        monkeypatch.setattr(module, "BUDGET_S", 600)


def key_of(answer: Answer) -> list[str]:
    return re.findall(r'<a href="/number/\d+[^"]*">([^<]+)</a>', answer.text)


def test_the_gallery_shows_samples_with_images_and_links_and_the_next_page(ask: Ask) -> None:
    first = ask("/")
    assert first.status == 200
    assert first.text.count('<li class="card">') == 24
    assert "24 samples in 1 datasets" in first.text
    filtered = ask("/?min_images=40")
    assert len(key_of(filtered)) == 1
    assert filtered.text.count("<img") == 4  # of forty
    assert len(key_of(ask("/?text=shalom"))) == 0
    assert len(key_of(ask("/?text=שלום"))) == 1
    assert key_of(ask("/?order=longest"))[0] == key_of(ask("/?min_length=1000&order=longest"))[0]


def test_a_sample_shows_its_images_in_place_its_trained_text_and_where_it_came_from(ask: Ask) -> None:
    page = ask("/number/5").text
    assert page.count('<figure class="placed">') == 40
    assert re.search(r'<span class="trained">\s*Answer 0 of record 5\.', page)
    assert "chat.jsonl" in page
    assert "record <bdi>r5</bdi>" in page
    assert 'rel="next"' in page
    assert 'rel="prev"' in page


def test_neighbours_keep_the_filters_that_the_reader_came_with(ask: Ask) -> None:
    gallery = ask("/?min_images=1&max_images=1&order=shortest")
    address = re.findall(r'href="(/number/[^"]+)"', gallery.text)[1].replace("&amp;", "&")
    page = ask(address).text
    for relation in ("prev", "next"):
        target = re.search(rf'rel="{relation}" href="([^"]+)"', page)
        assert target is not None
        assert "order=shortest" in target[1]
    assert 'href="/?min_images=1&amp;max_images=1&amp;order=shortest&amp;from=1"' in page


def test_a_search_without_time_leads_from_a_sample_to_the_list_that_searches_on(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(0, 10**6, 1000))
    monkeypatch.setattr("preprocess.viewer.selection.time.monotonic", lambda: next(ticks))
    page = ask("/number/10?text=no+such+text&at=10").text
    assert 'rel="next" href="/?text=no+such+text&amp;from=12"' in page
    assert 'rel="prev" href="/?text=no+such+text&amp;before=9"' in page
    gallery = ask("/?text=no+such+text&before=9").text
    assert re.findall(r'rel="(\w+)" href="[^"]*" data-continue', gallery) == ["prev"]


def test_a_sample_has_a_link_of_its_own(ask: Ask) -> None:
    key = key_of(ask("/"))[7]
    by_key = ask(f"/sample/{key}")
    assert by_key.status == 200
    assert f"<h1>{key}</h1>" in by_key.text
    missing = ask("/sample/nobody")
    assert missing.status == 404
    assert "no sample has the key" in missing.text


def test_text_of_data_is_text_on_every_page(ask: Ask) -> None:
    for address in ("/", "/number/3", "/tokens/3", "/record/3", "/rejects", "/?text=%3Cscript%3Ealert(1)%3C/script%3E"):
        page = ask(address).text
        assert "<script>alert" not in page, address
        assert "<img src=x" not in page, address
        assert "\x1b" not in page, address
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in ask("/number/3").text


def test_tokens_are_listed_in_parts_and_an_image_is_one_row(ask: Ask) -> None:
    page = ask("/tokens/0").text
    assert re.search(r"<td class=\"number\">\d+ to \d+</td>", page)  # 16 positions of the image
    assert "image 1" in page
    assert '<span class="trained">trained</span>' in page
    long = ask("/tokens/4").text
    assert "later tokens" in long
    assert "earlier tokens" in ask("/tokens/4?start=500").text


def test_a_very_long_answer_is_cut_and_can_be_seen_whole(ask: Ask) -> None:
    cut = ask("/number/4").text
    assert "more characters)" in cut
    assert "Show the whole text" in cut
    assert len(ask("/number/4?whole=1").text) > len(cut) + 20_000


def test_the_record_is_shown_as_it_was_read_from_a_file_that_the_build_pins(folder: Path, ask: Ask) -> None:
    page = ask("/record/2").text
    assert "&#34;id&#34;: &#34;r2&#34;" in page
    chat = folder / "mine/chat.jsonl"
    before = chat.read_bytes()
    chat.write_bytes(before.replace(b"record 2", b"record X"))
    try:
        assert "is not there, or it changed since" in ask("/record/2").text
    finally:
        chat.write_bytes(before)


def test_rejects_have_a_list_and_pages_with_reason_meaning_and_record(ask: Ask) -> None:
    listed = ask("/rejects")
    assert listed.text.count('<li class="card">') == 3
    assert ask("/rejects?reason=image_missing").text.count('<li class="card">') == 2
    address = re.findall(r'href="(/reject/[^"]+)"', ask("/rejects?reason=image_missing&text=absent").text)[0]
    page = ask(address.partition("?")[0]).text
    assert "the image store does not have the image" in page
    assert "absent.jpg" in page
    assert "&#34;id&#34;: &#34;r90&#34;" in page
    assert 'rel="prev"' in page
    assert page.count('<figure class="placed">') == 1
    assert "cannot be shown" in page
    wrong = ask("/reject/7")
    assert wrong.status == 404
    assert "no reject at byte 7" in wrong.text


def test_each_sample_leads_to_its_sequence_also_a_held_out_one(tmp_path: Path) -> None:
    write_images(tmp_path / "mine", 8)
    build(
        chat_blend(
            tmp_path, [chat_record(number, images=[f"{number}.jpg"]) for number in range(8)], split={"eval": 0.4}
        )
    )
    ask = app_of(tmp_path)
    splits = set()
    for number in range(8):
        page = ask(f"/number/{number}").text
        link = re.findall(r'href="(/sequences\?[^"]+)"', page)[0]
        shown = ask(link).text
        assert re.findall(r'href="(/sample/[^"]+)"', page)[0] in shown
        splits |= set(re.findall(r"<option selected>(train|eval)</option>", shown))
    assert splits == {"train", "eval"}
    assert ask("/sequences?sample=8").status == 404


def test_sequences_are_drawn_with_what_a_token_attends_to(ask: Ask) -> None:
    page = ask("/sequences?chosen=0&token=3&max_length=60000").text
    assert "<h2" in page
    assert "attention mask, mmca" in page
    assert "Token 3 attends to" in page
    assert 'class="trained"' in page
    found = ask("/sequences?sample=5").text
    assert "attention mask" in found
    short = ask("/sequences?max_length=10")
    assert "a sequence takes 10" in short.text
    assert ask("/sequences?kind=dense").status == 400


@pytest.mark.parametrize(
    ("address", "status", "says"),
    [
        ("/nowhere", 404, "there is no page /nowhere"),
        ("/number/999", 404, "no such sample; this build has 24"),
        ("/number/x", 404, "there is no page"),
        ("/number/" + "9" * 5000, 404, "there is no page"),
        ("/?order=upwards", 400, "expected one of build, random"),
        ("/?min_images=-1", 400, "min_images: got &#39;-1&#39;; expected a whole number from 0"),
        ("/?min_images=99999999999999999999", 400, "expected a whole number"),
        ("/?dataset=other", 400, "no dataset other; this build has mine"),
        ("/?text=" + "a" * 1001, 400, "expected at most 1,000"),
        ("/..%2f..%2fetc%2fpasswd", 404, "there is no page"),
        ("/sample/..%2f..%2fmanifest.json", 404, "Not here"),
    ],
)
def test_a_wrong_address_is_a_page_that_says_so(ask: Ask, address: str, status: int, says: str) -> None:
    answer = ask(address)
    assert answer.status == status
    assert says in answer.text


def test_only_its_own_names_and_reading_methods_are_answered(ask: Ask) -> None:
    assert ask("/", host="127.0.0.1:8000").status == 200
    assert ask("/", host="[::1]:8000").status == 200
    assert ask("/", host="evil.example:8000").status == 421
    assert ask("/", method="POST").status == 405
    assert ask("/", method="HEAD").status == 200
    assert (host_name("[::1]"), host_name("LocalHost:1"), host_name("::1")) == ("[::1]", "localhost", ":")


def test_a_server_for_other_machines_is_reached_by_addresses_and_its_own_names() -> None:
    is_own = own_hosts("0.0.0.0")
    assert all(map(is_own, ("192.168.1.7", "[fe80::1]", "localhost", socket.gethostname().lower())))
    assert not any(map(is_own, ("evil.example", "", "[evil]")))
    assert own_hosts("data.internal")("data.internal")
    assert not own_hosts("127.0.0.1")("192.168.1.7")


def test_every_answer_forbids_scripts_of_data(ask: Ask) -> None:
    for address in ("/", "/nowhere", "/image/0/0", "/viewer.js", "/?order=x"):
        headers = ask(address).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_images_are_small_unless_the_stored_file_is_asked_for(folder: Path, ask: Ask) -> None:
    stored = ask("/image/0/0?full=1")
    assert stored.body == jpeg(0)
    assert stored.headers["content-type"] == "image/jpeg"
    assert ask("/image/0/0").headers["content-type"] == "image/jpeg"
    assert b"has 1 images; there is" in ask("/image/0/1").body


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
    manifest = (folder / "build/manifest.json").read_text(encoding="utf-8").replace('"version": 1', '"version": 2')
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
