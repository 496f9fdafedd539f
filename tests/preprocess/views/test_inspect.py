"""What people are shown: samples, previews, tables, a first blend file; and nothing that commands a terminal."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from dst.common.terminal_text import json_line, visible
from preprocess.adapters.registry import ADAPTERS
from preprocess.blend import discover
from preprocess.blend.config import load_blend
from preprocess.compiler.report import BuildReport, DatasetReport, print_report, report_table
from preprocess.views.inspect import coloured, inspect_samples, print_sample
from preprocess.views.preview import print_rendered
from tests.support.small_blends import SAMPLES, build, chat_blend, chat_record, write_chat, write_images

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
    build(chat_blend(tmp_path, [record]))
    (sample,) = inspect_samples(tmp_path / "build")
    assert "It says <image> there." in "".join(text for text, _ in sample.runs)
    assert [sample.runs[number][0].strip() for number in sample.placeholders] == ["<image>"]
    console = Console(force_terminal=True, color_system="standard", width=200)
    with console.capture() as shown:
        console.print(coloured(sample))
    assert shown.get().count("\x1b[1;36m") == 1
    assert "\x1b[1;32mIt says <image> there.</s>" in shown.get()


def test_samples_of_one_side_are_asked_for_by_split(tmp_path: Path) -> None:
    records = [chat_record(number, split="val" if number % 3 == 0 else "train") for number in range(6)]
    build(chat_blend(tmp_path, records))
    sides = {side: list(inspect_samples(tmp_path / "build", split=side)) for side in ("train", "eval")}
    assert {side: len(samples) for side, samples in sides.items()} == {"train": 4, "eval": 2}
    assert all(sample.split == side for side, samples in sides.items() for sample in samples)


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


def test_a_preview_needs_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava/detail_23k.json").write_bytes((SAMPLES / "llava/detail_23k.json").read_bytes())
    render(tmp_path, "llava", limit=1)
    assert "ASSISTANT:" in capsys.readouterr().out


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
    assert "llava: notes: dangling_question 3" in lines
    assert "llava: not found: llava/complex_reasoning_77k.json" in lines
    assert report.to_json()["absent"] == ["llava/complex_reasoning_77k.json"]


# Finding datasets


@pytest.mark.parametrize("name", ["2014", "yes", "1e-3", "null", "a: b # c", "it's", 'say "hi"', "two\nlines", "é 漢"])
def test_the_first_blend_file_names_a_folder_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "OCR_VQA/images").mkdir(parents=True)
    (tmp_path / name / "OCR_VQA/dataset.json").write_text("{}")
    discover.write_blend(tmp_path, tmp_path / "blend.yaml")
    assert load_blend(tmp_path / "blend.yaml").datasets[0].root == name
    assert yaml.safe_load((tmp_path / "blend.yaml").read_text(encoding="utf-8"))["datasets"][0]["root"] == name


class _File:
    """A directory entry of which nothing is asked but whether it is a folder."""

    def is_dir(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} of a file was asked for")


def test_files_among_the_folders_are_passed_by_and_folders_are_sorted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b", "a", ".hidden", "c"):
        (tmp_path / name).mkdir()
    scandir = os.scandir

    class Scan:
        def __init__(self, folder: Path) -> None:
            self._entries = scandir(folder)

        def __enter__(self) -> Any:
            return (entry for real in self._entries for entry in (_File(), real))

        def __exit__(self, *_: object) -> None:
            self._entries.close()

    monkeypatch.setattr(os, "scandir", Scan)
    actual = list(discover._folders(tmp_path))
    assert actual == [tmp_path, *(tmp_path / name for name in "abc")]


def test_every_sample_dataset_is_found() -> None:
    assert {name for name, _ in discover.find_layouts(SAMPLES)} == set(ADAPTERS) - {"chat"}
