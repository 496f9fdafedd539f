"""The numbers of builds whose samples have branches, compared with the draws of epochs and with separate samples."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import shards
from preprocess.compiler.report import BuildReport, print_report
from preprocess.reports.build_report import make_report
from preprocess.reports.tables import Table
from preprocess.views.stats import NeverDrawn, build_stats, never_drawn, print_stats
from tests.support.shared_builds import question_blend
from tests.support.small_blends import build

QUESTIONS = {0: 2, 1: 2, 2: 2, 3: 3, 4: 3, 5: 1, 6: 4, 7: 2}
"""How many records ask about each image: nineteen in eight samples"""
IMAGE_TOKENS = 16


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same data with `share` and without; of the shared one an epoch draws ten of the nineteen records."""
    folder = tmp_path_factory.mktemp("sharing")
    reports = {}
    for name, options in (("shared", {"share": 4, "samples": 10}), ("separate", {"share": 1})):
        reports[name] = build(question_blend(folder / name, QUESTIONS, dataset=options))
    return {"folder": folder, "reports": reports}


@pytest.fixture(scope="module")
def tables(built: dict[str, Any]) -> dict[str, Table]:
    return {table.name: table for table in make_report(built["folder"] / "shared/build").tables}


def rows(table: Table) -> list[dict[str, Any]]:
    return table.to_json()


def test_an_epoch_has_the_records_samples_and_tokens_that_the_order_draws(
    built: dict[str, Any], tables: dict[str, Table]
) -> None:
    opened = shards.open(built["folder"] / "shared/build")
    (epoch,) = rows(tables["epoch"])
    (mixture,) = rows(tables["mixture"])
    epochs = 60
    drawn = Counter[int]()
    for number in range(epochs):
        drawn.update(opened.order().samples(number, 0, len(opened.order())).tolist())
    samples = {number: opened["train"][number] for number in range(len(opened["train"]))}
    records = sum(len(samples[number].branches) * count for number, count in drawn.items())
    assert epoch["records"] == 19
    assert epoch["samples"] == 8
    assert epoch["records_drawn"] == mixture["records_drawn"] == records / epochs == 10
    assert epoch["samples_drawn"] == drawn.total() / epochs
    assert epoch["times_shown"] == pytest.approx(10 / 19)
    lengths = sum((len(samples[number].ids) + IMAGE_TOKENS - 1) * count for number, count in drawn.items())
    assert epoch["tokens"] == pytest.approx(lengths / epochs, rel=0.01)
    assert epoch["images"] == epoch["samples_drawn"]
    assert mixture["asked"] == mixture["records"] == 1


def test_samples_with_a_rare_number_of_records_that_no_epoch_draws_are_named(
    built: dict[str, Any], tables: dict[str, Table], capsys: pytest.CaptureFixture[str]
) -> None:
    opened = shards.open(built["folder"] / "shared/build")
    drawn = {row["records_each"]: row["samples_drawn"] for row in rows(tables["draws_by_records"])}
    counts = {number: len(sample.branches) for number, sample in enumerate(opened["train"])}
    seen = {number for epoch in range(40) for number in opened.order().samples(epoch, 0, len(opened.order())).tolist()}
    assert {count for count, draws in drawn.items() if not draws} == {counts[number] for number in {*counts} - seen}
    missed = never_drawn(opened)
    assert [(one.records_each, one.samples) for one in missed] == [
        (count, [*counts.values()].count(count)) for count, draws in drawn.items() if not draws
    ]
    assert never_drawn(shards.open(built["folder"] / "separate/build")) == []
    print_stats([], {}, missed=[NeverDrawn(dataset="mine", records_each=7, samples=3)])
    assert "mine: no epoch draws the 3 samples with 7 records" in capsys.readouterr().out


def test_what_sharing_saves_is_the_difference_to_separate_samples(
    built: dict[str, Any], tables: dict[str, Table]
) -> None:
    shared, separate = (build_stats(shards.open(built["folder"] / name / "build")) for name in ("shared", "separate"))
    (row,), (alone,) = shared, separate
    assert (row["records"], row["samples"]) == (alone["records"], 8)
    assert row["separate_images"] == alone["images"] == 19
    assert row["length_sum"] < row["separate_tokens"] < alone["length_sum"], "without the text in common"
    assert (alone["separate_images"], alone["separate_tokens"]) == (alone["images"], alone["length_sum"])
    (saved,) = rows(tables["sharing"])
    of_one = min(sample.branches[0].end for sample in shards.open(built["folder"] / "shared/build")["train"])
    assert saved["separate_tokens"] == alone["length_sum"] - (of_one + IMAGE_TOKENS - 1)
    assert saved["separate_text_tokens"] == saved["separate_tokens"] - 18 * IMAGE_TOKENS
    assert saved["text_tokens"] == saved["tokens"] - 7 * IMAGE_TOKENS
    assert saved["saved"] == pytest.approx(1 - saved["tokens"] / saved["separate_tokens"])


def test_texts_and_turns_are_those_of_the_same_records_apart(built: dict[str, Any], tables: dict[str, Table]) -> None:
    apart = {table.name: table for table in make_report(built["folder"] / "separate/build").tables}
    for name in ("answer_tokens", "answer_characters", "questions", "answers", "openings"):
        assert tables[name].rows == apart[name].rows, name
    assert [row[2] for row in tables["turns"].rows] == [row[2] for row in apart["turns"].rows]
    bars = {row["from"]: row["train"] for row in rows(tables["records"])}
    assert bars == {1: 1, 2: 4, 3: 2, 4: 1}
    assert "records" not in apart
    assert "sharing" not in apart
    (contents,) = rows(tables["contents"])
    assert (contents["records"], contents["samples"]) == (19, 8)


def test_the_table_of_stats_has_records_only_for_a_build_that_shares(
    built: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    print_stats(build_stats(shards.open(built["folder"] / "shared/build")), {})
    shown = " ".join(capsys.readouterr().out.split())
    assert "records" in shown.partition("samples")[0]
    assert "mine: train: 19 records in 8 samples, with 8 images instead of 19: sharing saves at least" in shown
    assert "share: of an epoch's draws; those of mine count records, not samples" in shown
    print_stats(build_stats(shards.open(built["folder"] / "separate/build")), {})
    assert "records" not in capsys.readouterr().out


def test_the_report_of_a_build_says_which_counts_are_records(
    built: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    reports: dict[str, BuildReport] = built["reports"]
    print_report(reports["shared"])
    assert (
        "mine: 19 records are in 8 samples, 7 of them with branches; train and eval count samples, the share of an "
        "epoch counts records"
    ) in " ".join(capsys.readouterr().out.split())
    print_report(reports["separate"])
    assert "branches" not in capsys.readouterr().out
