"""What people are shown: samples, previews and tables; and nothing that commands a terminal."""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from dst.common.terminal_text import json_line, visible
from preprocess.compiler.report import BuildReport, DatasetReport, print_report, report_table
from preprocess.conversation import Image
from preprocess.views import preview_images
from preprocess.views.inspect import coloured, inspect_samples, print_sample
from preprocess.views.preview import print_rendered
from preprocess.views.preview_images import PreviewImages
from tests.support.shared_builds import question_blend, records_of
from tests.support.small_blends import SAMPLES, build, chat_blend, chat_record, jpeg, write_chat, write_images

HOSTILE = "a\x1b[31mb\x9b2Jc\x07d\re\x7ff"
SHOWN = r"a\x1b[31mb\x9b2Jc\x07d\x0de\x7ff"
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def render(root: Path, adapter: str = "chat", template: str = "vicuna", limit: int = 9) -> None:
    print_rendered(adapter, root, limit=limit, template=template, settings=[])


def report_of(*datasets: DatasetReport) -> BuildReport:
    named = {dataset.name: dataset for dataset in datasets}
    return BuildReport(path=Path("build"), datasets=named, reused_tasks=0, built_tasks=1)


# Control characters


def test_control_characters_are_written_out_and_all_other_text_is_kept() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("line\n\ttab é 漢 🙂") == "line\n\ttab é 漢 🙂"
    assert visible("\udcff") == r"\udcff"


def test_json_for_people_holds_no_control_characters_and_reads_back() -> None:
    line = json_line({"text": HOSTILE, "é": "\x85\udcff"})
    assert not RAW.search(line)
    line.encode("utf-8")
    assert json.loads(line) == {"text": HOSTILE, "é": "\x85\udcff"}


def test_samples_are_shown_without_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = chat_record(0)
    record["messages"][1]["content"] = HOSTILE
    record["id"] = f"id {HOSTILE}"
    build(chat_blend(tmp_path, [record]))
    capsys.readouterr()
    for sample in inspect_samples(tmp_path / "build"):
        print_sample(sample)
    shown = capsys.readouterr().out
    assert not RAW.search(shown)
    assert SHOWN in shown


def test_previews_are_shown_without_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = chat_record(0), {"id": HOSTILE, "messages": [{"role": HOSTILE, "content": "x"}]}
    good["messages"][1]["content"] = HOSTILE
    render(write_chat(tmp_path, [good, bad]))
    shown = capsys.readouterr().out
    assert not RAW.search(shown)
    assert shown.count(SHOWN) >= 2


def test_reports_are_shown_without_control_characters_or_markup(capsys: pytest.CaptureFixture[str]) -> None:
    rows = DatasetReport(name="mine", records=1, inputs=[], absent=(HOSTILE, "[bold]x[/bold]"))
    print_report(report_of(rows))
    shown = capsys.readouterr().out
    assert not RAW.search(shown)
    assert "[bold]x[/bold]" in shown


# Samples


def test_the_words_of_a_placeholder_in_data_are_not_coloured_as_one(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 1)
    record = chat_record(0, images=names)
    record["messages"][1]["content"] = "It says <image> there."
    build(chat_blend(tmp_path, [record], dataset={"options": {"media_tags": "text"}}))
    (sample,) = inspect_samples(tmp_path / "build")
    assert "It says <image> there." in "".join(piece.text for piece in sample.pieces)
    assert [piece.text.strip() for piece in sample.pieces if piece.kind == "image"] == ["<image>"]
    console = Console(force_terminal=True, color_system="standard", width=200)
    with console.capture() as shown:
        console.print(coloured(sample.pieces))
    assert shown.get().count("\x1b[1;36m") == 1
    assert "\x1b[1;32mIt says <image> there.</s>" in shown.get()


def test_samples_of_one_side_are_asked_for_by_split(tmp_path: Path) -> None:
    records = [chat_record(number, split="val" if number % 3 == 0 else "train") for number in range(6)]
    build(chat_blend(tmp_path, records))
    sides = {side: list(inspect_samples(tmp_path / "build", split=side)) for side in ("train", "eval")}
    assert {side: len(samples) for side, samples in sides.items()} == {"train": 4, "eval": 2}
    assert all(sample.split == side for side, samples in sides.items() for sample in samples)


def test_a_sample_with_branches_shows_its_beginning_once_and_each_record_below_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(question_blend(tmp_path, {0: 3, 1: 1}))
    capsys.readouterr()
    alone, shared = inspect_samples(tmp_path / "build")
    assert "branches" not in alone.to_json()
    print_sample(shared)
    shown = capsys.readouterr().out
    assert shown.count("You look at the images") == shown.count("image 1: 0.jpg") == shown.count("<image>") == 1
    assert re.findall(r"^branch \d: (\S+)  from (.+)$", shown, re.MULTILINE) == [
        (f"chat/r{number}", f"chat.jsonl r{number}") for number in range(3)
    ]
    tree = shared.to_json()
    for number, branch in enumerate(tree["branches"]):
        ids = [*tree["ids"][: branch["beginning"]], *tree["ids"][branch["start"] : branch["end"]]]
        record = records_of(tmp_path / "build")[branch["id"]]
        assert tuple(ids) == record.ids
        assert branch["text"].endswith(
            f"Question 0 of record {number}?\n\n### Answer:\nAnswer 0 of record {number}.</s>"
        )
        assert branch["text"].count("<image>") == 1
        (trained,) = branch["trained"]
        assert tree["labels"][slice(*trained)] == [label for label in record.labels if label != -100]
        assert branch["sources"] == [{"file": "chat.jsonl", "record": f"r{number}"}]


# Previews


REFUSES = """{%- if messages[0]['content'] is string and 'record 1' in messages[0]['content'] -%}
{{- raise_exception('no record 1 here') -}}{%- endif -%}
{%- for message in messages -%}{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] -}}{{- eos_token -}}{%- endgeneration -%}
{%- else -%}{{- 'Q: ' -}}{{- message['content'] -}}{%- endif -%}{%- endfor -%}
"""


def test_a_conversation_that_the_template_refuses_is_shown_as_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.jinja").write_text(REFUSES)
    render(write_chat(tmp_path, [chat_record(number) for number in range(3)]), template=str(tmp_path / "mine.jinja"))
    shown = capsys.readouterr().out
    assert re.search(r"reject chat.jsonl \S+: template: .*no record 1 here", shown)
    assert "Answer 0 of record 0." in shown
    assert "Answer 0 of record 2." in shown


def test_a_preview_says_what_was_changed_on_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = chat_record(0)
    record["messages"].append({"role": "user", "content": "And then?"})
    render(write_chat(tmp_path, [record]))
    assert "notes: dangling_question" in capsys.readouterr().out


def test_a_preview_needs_no_images_and_says_where_they_should_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava/detail_23k.json").write_bytes((SAMPLES / "llava/detail_23k.json").read_bytes())
    render(tmp_path, "llava", limit=1)
    shown = capsys.readouterr().out
    assert "ASSISTANT:" in shown
    assert f"image_missing: nothing to look in: none of coco/train2017 is below {tmp_path}; set images:" in shown


def test_a_preview_says_the_size_of_each_image_or_why_a_build_rejects_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/good.jpg").write_bytes(jpeg(1, size=(40, 24)))
    (tmp_path / "images/broken.jpg").write_bytes(jpeg(1)[:300])
    names = ["good.jpg", "broken.jpg", "none.jpg"]
    render(write_chat(tmp_path, [chat_record(0, images=names)]))
    lines = {line.split()[2]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  image ")}
    assert lines["good.jpg:"] == "  image 1: good.jpg: 40x24 jpg"
    assert lines["broken.jpg:"].startswith("  image 2: broken.jpg: image_unreadable: ")
    assert lines["none.jpg:"] == (
        f"  image 3: none.jpg: image_missing: {tmp_path} has no 'none.jpg'; {tmp_path / 'images'} has no 'none.jpg'"
    )


def test_a_preview_looks_for_images_in_archives_and_leaves_no_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.jpg", jpeg(1, size=(40, 24)))
    root = write_chat(tmp_path / "mine", [chat_record(0, images=["a.jpg"])])
    print_rendered("chat", root, limit=9, template="vicuna", settings=["images=../photos.zip"])
    assert "image 1: a.jpg: 40x24 jpg" in capsys.readouterr().out
    assert not list((tmp_path / "temporary").iterdir())


def test_a_preview_does_not_index_an_archive_for_minutes_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview_images, "MAX_INDEXED_BYTES", 99)
    (tmp_path / "photos.tar").write_bytes(bytes(10240))
    (tmp_path / "photos").mkdir()
    images = PreviewImages([tmp_path / "photos", tmp_path / "photos.tar"], "", tmp_path / "cache")
    found = images.line(Image(name="a.jpg"))
    assert found.reason == ""
    assert found.text.startswith(f"not found elsewhere; not looked for in {tmp_path / 'photos.tar'} (")


# The build's table


def test_the_build_table_separates_records_from_samples_and_fits_120_columns() -> None:
    big = DatasetReport(
        name="llava_otter_blend",
        records=1_234_567,
        inputs=[],
        members=1_234_000,
        images=1_000_000,
        tokens=123_456_789,
        trained_tokens=98_765_432,
        splits={"train": 1_111_111, "eval": 22_222},
        rejects=Counter({"image_unreadable": 500, "too_many_images": 67}),
        share=1.0,
    )
    console = Console(width=120)
    with console.capture() as shown:
        console.print(report_table(report_of(big)))
    lines = [line.rstrip() for line in shown.get().splitlines() if line.strip()]
    header, _, row = lines
    expected = ["dataset", "records", "members", "train", "eval", "rejects", "images", "tokens", "trained", "share"]
    assert header.split() == expected
    assert row.split() == [
        *("llava_otter_blend", "1,234,567", "1,234,000", "1,111,111", "22,222", "567", "1,000,000"),
        *("123,456,789", "98,765,432", "100.0%"),
    ]


def test_below_the_table_are_reasons_and_what_was_not_found(capsys: pytest.CaptureFixture[str]) -> None:
    report = DatasetReport(
        name="llava",
        records=9,
        inputs=[],
        absent=("llava/complex_reasoning_77k.json",),
        rejects=Counter({"too_long": 1, "image_missing": 2}),
        notes=Counter({"dangling_question": 3}),
    )
    print_report(report_of(report))
    lines = capsys.readouterr().out.splitlines()
    assert "llava: rejects: image_missing 2, too_long 1" in lines
    assert "llava: notes (changed on the way): dangling_question 3" in lines
    assert "llava: not found: llava/complex_reasoning_77k.json" in lines
    assert report.to_json()["absent"] == ["llava/complex_reasoning_77k.json"]
