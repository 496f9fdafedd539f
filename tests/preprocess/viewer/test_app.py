"""The web app of a build: what its pages show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("starlette")

import shards
from preprocess.viewer import rejects, selection
from tests.support.asgi_client import Answer
from tests.support.remote_builds import publish
from tests.support.small_blends import build, chat_blend, chat_record, jpeg, write_images
from tests.support.viewed_builds import Ask, app_of


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
    assert page.count("<figcaption>") == 1
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


def test_notes_are_a_filter_and_are_explained(ask: Ask) -> None:
    listed = ask("/?note=dangling_question")
    assert listed.text.count('<li class="card">') == 1
    assert '<option value="dangling_question" selected>' in listed.text
    (address,) = re.findall(r'href="(/number/[^"]+)"', listed.text)
    assert "a last question without an answer was left out" in ask(address.replace("&amp;", "&")).text


def test_a_sample_shows_its_length_against_the_limit_its_template_and_its_tokenizer(folder: Path, ask: Ask) -> None:
    opened = shards.open(folder / "build")
    sample = opened["train"][0]
    length = len(sample.ids) + len(sample.images) * (opened.manifest.config.image_tokens - 1)
    page = ask("/number/0").text
    assert f"{length:,} of 60,000 tokens" in page
    assert f'<meter class="meter" min="0" max="60000" value="{length}"' in page
    assert "<dt>template</dt><dd>visualchat</dd>" in page
    assert opened.manifest.tokenizer.fingerprint[:12] in page
    assert "visualchat, the default" in page  # the text of the template


def test_a_build_at_a_url_is_shown_as_one_in_a_folder(folder: Path, memory: str, ask: Ask) -> None:
    publish(folder / "build", memory)
    remote = app_of(folder, memory)
    for address in ("/", "/number/5", "/tokens/3", "/record/2", "/rejects", "/sequences?chosen=0", "/image/0/0"):
        here, there = ask(address), remote(address)
        assert there.status == 200
        assert there.body.replace(memory.encode(), b"") == here.body.replace(str(folder / "build").encode(), b"")


def test_images_are_small_unless_the_stored_file_is_asked_for(folder: Path, ask: Ask) -> None:
    stored = ask("/image/0/0?full=1")
    assert stored.body == jpeg(0)
    assert stored.headers["content-type"] == "image/jpeg"
    assert ask("/image/0/0").headers["content-type"] == "image/jpeg"
    assert b"has 1 images; there is" in ask("/image/0/1").body
