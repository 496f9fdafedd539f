"""The numbers of a build's report, compared with slow obvious twins, and its page."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("matplotlib")

import shards
from preprocess.reports.build_report import draw, make_report
from preprocess.reports.frequent_texts import FrequentTexts
from preprocess.reports.histograms import doubling_edges, histogram_table, whole_edges
from preprocess.reports.index_numbers import index_tables
from preprocess.reports.parts import read_parts
from preprocess.reports.tables import Table
from shards import Build
from tests.support.browser import Chromium, is_accessible
from tests.support.commands import dsvl_prep
from tests.support.handmade_builds import IMAGE_TOKENS, Handmade, draft, make
from tests.support.small_blends import build, chat_record, write_blend, write_chat, write_images

HOSTILE = "<script>alert(1)</script> $x^2$"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets with a weight, which share images; one question that comes back, rejects of two reasons."""
    folder = tmp_path_factory.mktemp("report")
    records = [chat_record(number, images=[f"{number % 3}.jpg"], rounds=1 + number % 2) for number in range(12)]
    for record in records[:6]:
        record["messages"][0]["content"] = "<image>\nWhat is this?"
        record["messages"][1]["content"] = f"This is a photo of {record['id']}."
    records[7]["messages"][1]["content"] = HOSTILE
    rejected = [chat_record(90, images=["absent.jpg"]), {"id": "r91", "messages": []}]
    datasets = []
    for name, rows in (("one", [*records, *rejected]), ("two", records[:4])):
        write_images(folder / name, 3)
        write_chat(folder / name, rows)
        datasets.append({"name": name, "adapter": "chat", "root": name, "weight": 1 + 2 * (name == "one")})
    build(write_blend(folder / "blend.yaml", datasets, total=16, limits={"max_reject_share": 1.0}))
    return folder


@pytest.fixture(scope="module")
def tables(folder: Path) -> dict[str, Table]:
    return {table.name: table for table in make_report(folder / "build").tables}


def rows(table: Table) -> list[dict[str, Any]]:
    return table.to_json()


def test_the_mixture_has_what_was_asked_for_and_what_an_epoch_is(folder: Path, tables: dict[str, Table]) -> None:
    opened = shards.open(folder / "build")
    drawn = opened.order().samples(0, 0, len(opened.order())).tolist()
    samples = [opened["train"].named(number) for number in drawn]
    for row in rows(tables["mixture"]):
        own = [sample for name, sample in samples if name == row["dataset"]]
        assert row["asked"] == {"one": 0.75, "two": 0.25}[row["dataset"]]
        assert row["records"] == pytest.approx(len(own) / len(samples))
        assert row["records_drawn"] == len(own)
        images = sum(len(sample.images) for sample in own), sum(len(sample.images) for _, sample in samples)
        assert row["images"] == pytest.approx(images[0] / images[1], abs=0.05)  # a mean over all samples


def test_numbers_of_the_indexes_are_those_of_the_samples(tmp_path: Path) -> None:
    opened: Build = shards.open(make(tmp_path / "build").folder)
    named = {table.name: table for table in index_tables(opened, read_parts(opened), 64)}
    expected: dict[tuple[str, str], list[Any]] = {}
    for split in opened.splits:
        for index in range(len(opened[split])):
            dataset, sample = opened[split].named(index)
            expected.setdefault((dataset, split), []).append(sample)
    for row in rows(named["contents"]):
        samples = expected[row["dataset"], row["split"]]
        lengths = [len(sample.ids) + len(sample.images) * (IMAGE_TOKENS - 1) for sample in samples]
        assert row["samples"] == len(samples)
        assert row["tokens"] == sum(lengths)
        assert row["longest"] == max(lengths)
        assert row["trained_tokens"] == sum(int((sample.labels != -100).sum()) for sample in samples)
    for bar in rows(named["images"]):
        for split in opened.splits:
            counts = [len(sample.images) for (_, side), part in expected.items() if side == split for sample in part]
            assert bar[split] == sum(bar["from"] <= count < bar["to"] for count in counts)


def test_images_in_two_datasets_are_counted_exactly(folder: Path, tables: dict[str, Table]) -> None:
    opened = shards.open(folder / "build")
    groups: dict[str, Counter[str]] = {}
    for dataset, split, shard in opened.shards():
        groups.setdefault(f"{dataset} ({split})", Counter()).update(
            group for sample in shard.index.table.column("groups").to_pylist() for group in sample
        )
    expected = {(one, two): len(groups[one].keys() & groups[two].keys()) for one, two in combinations(groups, 2)}
    overlap = {(row["first"], row["second"]): row["images"] for row in rows(tables["image_overlap"])}
    assert overlap == {pair: count for pair, count in expected.items() if count}
    for row in rows(tables["image_reuse"]):
        counts = groups[f"{row['dataset']} ({row['split']})"]
        assert (row["images"], row["most"]) == (len(counts), max(counts.values()))
        assert row["samples_each"] == pytest.approx(counts.total() / len(counts))


def test_equal_samples_are_found_in_one_dataset_and_in_two(tmp_path: Path) -> None:
    made = Handmade(tmp_path / "build")
    same, other, third = (draft(number, num_images=2) for number in range(3))
    copies = [
        replace(same, key=f"copy-{number}", metadata={**same.metadata, "id": f"copy {number}"}) for number in (1, 2)
    ]
    made.add([same, copies[0], other], dataset="alpha")
    made.add([copies[1], third], dataset="beta")
    opened: Build = shards.open(made.finish())
    named = {table.name: table for table in index_tables(opened, read_parts(opened), 64)}
    found = {(row["first"], row["second"]): row["samples"] for row in rows(named["equal_samples"])}
    assert found == {("alpha (train)", "alpha (train)"): 1, ("alpha (train)", "beta (train)"): 1}


def test_frequent_texts_are_without_the_words_of_the_template(tables: dict[str, Table]) -> None:
    first = rows(tables["questions"])[0]
    assert (first["text"], first["count"]) == ("What is this?", 10)
    openings = {row["text"]: row["count"] for row in rows(tables["openings"])}
    assert openings["This is a photo of"] == 10


def test_rejects_are_counted_with_examples(tables: dict[str, Table]) -> None:
    assert {row["name"]: row["records"] for row in rows(tables["rejects"])} == {"image_missing": 1, "no_answer": 1}
    examples = {row["reason"]: row for row in rows(tables["reject_examples"])}
    assert examples["image_missing"]["record"] == "r90"
    assert "absent.jpg" in examples["image_missing"]["detail"]
    chart = draw(tables["rejects"])
    assert "image_missing · one" in chart
    assert "no_answer · one" in chart


def test_sequences_are_filled_for_half_and_more_of_the_length_of_the_build(
    folder: Path, tables: dict[str, Table]
) -> None:
    longest = shards.open(folder / "build").manifest.config.limits.max_length
    assert tables["sequence_fill"].column("max_length") == [longest // 2, longest, longest * 2, longest * 4]


def test_a_build_without_images_and_eval_and_with_an_empty_dataset_has_a_report(tmp_path: Path) -> None:
    made = Handmade(tmp_path / "build")
    made.add([draft(number, num_images=0) for number in range(3)])
    made.shards["beta"] = {"train": [], "eval": []}
    opened = shards.open(made.finish())
    named = {table.name: table for table in index_tables(opened, read_parts(opened), 64)}
    assert {row["dataset"]: row["times_shown"] for row in rows(named["epoch"])} == {"alpha": 1.0, "beta": 0.0}
    assert {row["dataset"]: row["tokens"] for row in rows(named["epoch"])} == {"alpha": 36, "beta": 0}
    assert named["mixture"].column("images") == [0.0, 0.0]
    assert (named["image_overlap"].rows, named["image_reuse"].rows) == ([], [])
    assert draw(named["mixture"]).startswith("<svg")
    assert draw(named["image_overlap"]) == ""


def test_values_of_zero_and_beyond_the_edges_have_a_bar_and_can_be_drawn() -> None:
    counts = histogram_table("n", "N", "", {"train": np.array([0, 0, 1, 500])}, unit="images")
    assert [row[:3] for row in counts.rows if row[2]] == [[0.0, 1.0, 2], [1.0, 2.0, 1], [384.0, 512.0, 1]]
    assert draw(counts).startswith("<svg")
    shapes = histogram_table("n", "N", "", {"images": np.array([0.5, 9000.0])}, unit="width / height", edges=[0, 1, 2])
    assert [row[2] for row in shapes.rows] == [1, 1]


def test_an_epoch_says_how_often_samples_are_shown(tables: dict[str, Table]) -> None:
    for row in rows(tables["epoch"]):
        assert row["times_shown"] == pytest.approx(row["records_drawn"] / row["records"])
        assert (row["records"], row["records_drawn"]) == (row["samples"], row["samples_drawn"])
        assert row["samples_not_shown"] == max(0, row["samples"] - row["samples_drawn"])
        contents = next(each for each in rows(tables["contents"]) if each["dataset"] == row["dataset"])
        for shown in ("tokens", "trained_tokens", "images"):
            assert row[shown] == round(contents[shown] / contents["samples"] * row["samples_drawn"])


def test_a_part_of_the_samples_is_read_evenly_and_the_report_says_so(folder: Path) -> None:
    report = make_report(folder / "build", read=6)
    assert 2 <= report.read <= 8
    assert report.samples == 16
    assert make_report(folder / "build", read=0).read == 0


def test_json_csv_and_the_page_have_the_same_numbers(folder: Path) -> None:
    done = dsvl_prep("stats", "build", "--json", "--html", "report.html", "--csv", "tables", cwd=folder)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    html = (folder / "report.html").read_text(encoding="utf-8")
    for name, table in report.items():
        if isinstance(table, list) and name != "faults":
            with (folder / f"tables/{name}.csv").open(encoding="utf-8", newline="") as file:
                read = list(csv.DictReader(file))
            assert [list(row.values()) for row in read] == [[str(value) for value in row.values()] for row in table]
            assert not table or f'id="{name}"' in html
    assert "<script" not in html
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert dsvl_prep("stats", "build", "--html", "again.html", cwd=folder).returncode == 0
    assert (folder / "again.html").read_bytes() == (folder / "report.html").read_bytes()


def test_a_page_in_an_absent_folder_and_a_file_for_tables_are_refused(folder: Path) -> None:
    done = dsvl_prep("stats", "build", "--html", "absent/report.html", cwd=folder)
    assert (done.returncode, "there is no folder absent" in done.stderr) == (2, True)
    done = dsvl_prep("stats", "build", "--csv", "blend.yaml", cwd=folder)
    assert (done.returncode, "expected a folder" in done.stderr) == (2, True)


def test_the_page_reads_well_in_a_browser(chromium: Chromium, folder: Path) -> None:
    assert dsvl_prep("stats", "build", "--html", "seen.html", cwd=folder).returncode == 0

    def check(page: Any) -> list[str]:
        assert page.locator("svg[role=img]").count() > 5
        fills = page.evaluate("[...document.querySelectorAll('svg path')].map((path) => getComputedStyle(path).fill)")
        assert len(set(fills)) > 3
        return is_accessible(page)

    for width, dark in ((375, True), (1200, False)):
        assert chromium.look(f"file://{folder / 'seen.html'}", check, width=width, dark=dark) == []


@given(st.lists(st.sampled_from("abcdefgh"), max_size=200), st.integers(2, 9))
def test_counts_in_bounded_memory_are_too_low_by_no_more_than_they_say(texts: list[str], capacity: int) -> None:
    counted = FrequentTexts(capacity)
    for text in texts:
        counted.add(text)
    exact = Counter(texts)
    top = dict(counted.top(99))
    assert len(top) <= capacity
    assert counted.total == len(texts)
    for text, count in exact.items():
        assert count - counted.most_missing <= top.get(text, 0) <= count


@given(st.integers(0, 10**9))
def test_edges_reach_beyond_the_largest_value_and_are_few(largest: int) -> None:
    for edges in (whole_edges(largest), doubling_edges(largest)):
        assert edges[-1] > largest
        assert edges == sorted(set(edges))
        assert len(edges) <= 64
