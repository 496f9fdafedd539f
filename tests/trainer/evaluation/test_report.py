"""An evaluation's files: tables that lose nothing, and a page that shows everything and runs nothing."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dst.common.html_pages import page_policy
from tests.support.browser import Chromium, is_accessible
from tests.support.paths import PHOTOS
from tests.support.small_blends import jpeg
from trainer.evaluation.metrics import METRICS, DatasetScore
from trainer.evaluation.report import (
    PAGE_DIALOGUES,
    AnsweredDialogue,
    AnsweredRound,
    ReportImage,
    write_report,
)

HOSTILE = (
    """<script>document.title='hacked'</script><img src=x onerror="document.title='hacked'">"""
    """</style></title></textarea>'"&amp;{{ 7*7 }}{% raise %}"""
)
ROW = DatasetScore(dataset="zoo <b>", kind="vqa", num_answers=1234, metrics={"vqa_accuracy": 0.5}, notes=("1 < 2",))
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text outside the style."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_tables_hold_every_text_in_full(tmp_path: Path) -> None:
    long = 'word, "quoted"\r\nline\t=1+1 ' * 4_000  # as long as Python's csv reads a cell
    dialogue = AnsweredDialogue(
        id="d\n1",
        dataset="zoo",
        rounds=(
            _round("What?", long, images=("a, b.jpg", "c;d.jpg"), references=("x", 'y"')),
            AnsweredRound(question=HOSTILE, answer="", scores={"cider": 1.25, "exact_match": 0.0}),
        ),
    )
    write_report(tmp_path / "new/folder", [dialogue], title="t")
    rows = [json.loads(line) for line in (tmp_path / "new/folder/results.jsonl").read_bytes().splitlines()]
    assert rows[0] == {
        "dataset": "zoo",
        "dialogue": "d\n1",
        "branch": None,
        "record": "",
        "round": 1,
        "question": "What?",
        "images": ["a, b.jpg", "c;d.jpg"],
        "answer": long,
        "references": ["x", 'y"'],
        "cider": None,
        "exact_match": None,
    }
    assert (rows[1]["question"], rows[1]["cider"], rows[1]["round"]) == (HOSTILE, 1.25, 2)
    with (tmp_path / "new/folder/results.csv").open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    assert [list(row) for row in cells] == [list(row) for row in rows]
    assert cells[0]["answer"] == long
    assert json.loads(cells[0]["images"]) == ["a, b.jpg", "c;d.jpg"]
    assert (cells[0]["cider"], cells[1]["cider"], cells[1]["exact_match"]) == ("", "1.25", "0.0")


def test_an_evaluation_without_answers_leaves_empty_tables(tmp_path: Path) -> None:
    write_report(tmp_path, [], title="t")
    assert (tmp_path / "results.jsonl").read_bytes() == b""
    assert (tmp_path / "results.csv").read_text().startswith("dataset,dialogue,branch,record,round,question")
    assert "0 dialogues, 0 answers" in (tmp_path / "results.html").read_text()


def test_the_page_shows_every_text_and_image(tmp_path: Path) -> None:
    page = _page(tmp_path, _dialogue())
    assert [image["alt"] for image in page.all("img")] == ["a.jpg", "b.jpg", "c.jpg"]
    for image in page.all("img"):
        kind, data = str(image["src"]).split(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
            assert (str(opened.width), str(opened.height)) == (image["width"], image["height"])
    shown = "".join(page.texts)
    for text in (
        "A title",
        "model",
        "smollm",
        "What?",
        "A cat.",
        "Two cats",
        "a.jpg",
        "vqa accuracy 0.300",
        "2 references",
    ):
        assert text in shown
    for text in ("zoo <b>", "1,234", "0.500", "1 < 2", f"vqa accuracy: {METRICS['vqa_accuracy']}"):
        assert text in shown


def test_nothing_from_data_becomes_an_element(tmp_path: Path) -> None:
    plain, hostile = (_page(tmp_path, _dialogue(text), title=text, fact=text) for text in ("words", HOSTILE))
    assert [name for name, _ in hostile.elements] == [name for name, _ in plain.elements]
    assert [set(attributes) for _, attributes in hostile.elements] == [
        set(attributes) for _, attributes in plain.elements
    ]
    assert not hostile.all("script")
    assert "".join(hostile.texts).count(HOSTILE) == "".join(plain.texts).count("words")
    assert hostile.all("img")[0]["alt"] == HOSTILE


def test_the_page_asks_nothing_of_the_network_and_runs_nothing(tmp_path: Path) -> None:
    page = _page(tmp_path, _dialogue())
    [policy] = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == page_policy()
    for name, attributes in page.elements:
        assert name not in ("script", "link", "iframe", "object", "form")
        for attribute, value in attributes.items():
            assert not attribute.startswith("on")
            if attribute in ("src", "href"):
                assert str(value).startswith(("data:image/jpeg;base64,", "#"))
    assert not re.search(r"url\(|@import|https?:", (tmp_path / "results.html").read_text())


def test_every_link_leads_to_a_dialogue(tmp_path: Path) -> None:
    page = _page(tmp_path, _dialogue(), _dialogue())
    assert [link["href"] for link in page.all("a")] == ["#main", "#d1", "#d2"]
    assert [article["id"] for article in page.all("article")] == ["d1", "d2"]


@settings(max_examples=25)
@given(st.text(st.characters(), max_size=40))
def test_any_text_can_be_written_and_read(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    dialogue = AnsweredDialogue(id=text, rounds=(AnsweredRound(question=text, answer=text, references=(text,)),))
    write_report(folder, [dialogue], title=text)
    whole = "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text)
    assert json.loads((folder / "results.jsonl").read_text(encoding="utf-8"))["answer"] == whole
    assert Page((folder / "results.html").read_text(encoding="utf-8")).all("article")


def test_a_very_long_answer_is_cut_on_the_page_and_the_page_says_so(tmp_path: Path) -> None:
    dialogue = AnsweredDialogue(id="d", rounds=(AnsweredRound(question="?", answer="x" * 1_020_000),))
    shown = "".join(_page(tmp_path, dialogue).texts)
    assert shown.count("x") < 20_100
    assert "1,000,000 more characters; all are in results.jsonl" in shown


def test_a_page_of_hundreds_of_dialogues_stays_small_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    dialogues = [
        AnsweredDialogue(
            id=f"dialogue {number}",
            rounds=tuple(
                AnsweredRound(
                    question="What?", answer="A cat.", images=(ReportImage(name="a.jpg", content=PHOTOS[index]),)
                )
                for index in range(3)
            ),
        )
        for number in range(PAGE_DIALOGUES + 7)
    ]
    page = _page(tmp_path, *dialogues)
    assert len(page.all("article")) == PAGE_DIALOGUES
    assert f"the first {PAGE_DIALOGUES}" in "".join(page.texts)
    assert len(page.all("img")) == 3 * PAGE_DIALOGUES
    assert (tmp_path / "results.html").stat().st_size < 20e6
    assert len((tmp_path / "results.jsonl").read_bytes().splitlines()) == 3 * (PAGE_DIALOGUES + 7)


def test_images_are_smaller_where_there_are_more_of_them(tmp_path: Path) -> None:
    image = ReportImage(name="a.png", content=_encoded(Image.new("RGB", (900, 600)), "PNG"))
    sizes = []
    for count in (150, 151, 501, 1501):
        dialogue = AnsweredDialogue(id="d", rounds=(AnsweredRound(question="?", answer="!", images=(image,) * count),))
        sizes.append({image["width"] for image in _page(tmp_path, dialogue).all("img")})
    assert sizes == [{"512"}, {"320"}, {"192"}, {"112"}]


def test_dialogues_of_many_images_fill_a_page_sooner(tmp_path: Path) -> None:
    image = ReportImage(name="a.png", content=_encoded(Image.new("RGB", (90, 60)), "PNG"))
    rounds = (AnsweredRound(question="?", answer="!", images=(image,) * 1400),)
    page = _page(tmp_path, *[AnsweredDialogue(id=f"d{number}", rounds=rounds) for number in range(3)])
    assert len(page.all("img")) == 2800
    assert "this page shows the first 2," in "".join(page.texts)
    page = _page(tmp_path, *[AnsweredDialogue(id=f"d{number}", rounds=rounds * 3) for number in range(2)])
    assert len(page.all("img")) == 4200
    assert "this page shows the first 1," in "".join(page.texts)


def test_missing_and_broken_images_have_their_reason_in_their_place(tmp_path: Path) -> None:
    missing = ReportImage(name="a.jpg", content=tmp_path / "absent.jpg")
    broken = ReportImage(name="b.jpg", content=b"<b>text")
    sound = ReportImage(name="c.jpg", content=jpeg(1))
    rounds = (AnsweredRound(question="?", answer="kept", images=(missing, broken, sound)),)
    page = _page(tmp_path, AnsweredDialogue(id="cats", rounds=rounds))
    assert [text for text in page.texts if "cannot be shown" in text] == [
        "cannot be shown: No such file or directory",
        "cannot be shown: no image: the file starts with b'<b>text'",
    ]
    assert [image["alt"] for image in page.all("img")] == ["c.jpg"]
    assert "kept" in (tmp_path / "results.jsonl").read_text()


def test_control_characters_and_halves_of_characters_are_written_out(tmp_path: Path) -> None:
    page = _page(tmp_path, _dialogue("a\x1b[31mb\ud800c"))
    assert r"a\x1b[31mb\ud800c" in page.texts


def test_the_same_results_give_the_same_bytes_and_replace_the_old(tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        _page(tmp_path, _dialogue())
        contents.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"results.csv", "results.html", "results.jsonl"}


def test_a_browser_shows_the_page_and_runs_nothing(chromium: Chromium, tmp_path: Path) -> None:
    _page(tmp_path, _dialogue(HOSTILE), title="A title")

    def check(page: Any) -> list[str]:
        assert page.title() == "A title"  # a script of the data would have renamed it
        assert page.locator("img").count() == 3
        assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        return is_accessible(page)

    for width, dark in ((375, True), (1200, False)):
        assert chromium.look(f"file://{tmp_path / 'results.html'}", check, width=width, dark=dark) == []


def _dialogue(text: str = "") -> AnsweredDialogue:
    return AnsweredDialogue(
        id=text or "cats",
        dataset=text or "zoo",
        rounds=(
            _round(
                text or "What?",
                text or "A cat.",
                images=(text or "a.jpg", "b.jpg"),
                references=(text or "Two cats", "x"),
            ),
            _round(text or "And now?", text or "A dog.", images=("c.jpg",), scores={"vqa_accuracy": 0.3}),
        ),
    )


def _round(question: str, answer: str, *, images: tuple[str, ...] = (), **more: Any) -> AnsweredRound:
    shown = tuple(ReportImage(name=name, content=jpeg(number)) for number, name in enumerate(images))
    return AnsweredRound(question=question, answer=answer, images=shown, **more)


def _page(folder: Path, *dialogues: AnsweredDialogue, title: str = "A title", fact: str = "smollm") -> Page:
    write_report(folder, dialogues, title=title, facts={"model": fact}, scores=[ROW])
    return Page((folder / "results.html").read_text(encoding="utf-8"))


def _encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()
