"""A blend of nine datasets in which most records are damaged at random: nothing is lost, nothing is unexplained, and
what was left alone comes out as if the rest had never been touched.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import shards
from preprocess.compiler.report import BuildReport
from preprocess.conversation import REASONS
from tests.support.damaged_blends import NUM_RECORDS, WHOLE_EVERY, write_all
from tests.support.fuzzed_datasets import FORMS
from tests.support.small_blends import build, files_of, rejects_of


def samples_by_record(folder: Path) -> dict[tuple[str, str], list[Any]]:
    """All samples of (dataset, record): an id that occurs twice must not give two."""
    found: dict[tuple[str, str], list[Any]] = {}
    for dataset, split, shard in shards.open(folder).shards():
        for row in range(len(shard)):
            one = shard[row]
            for source in one.metadata["sources"]:
                content = (split, one.metadata, one.ids.tolist(), one.labels.tolist(), one.images)
                found.setdefault((dataset, source["record"]), []).append(content)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Fuzzed:
    report: BuildReport
    counts: dict[str, int]
    whole: dict[str, set[str]]
    blend: Path


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Fuzzed:
    blend, counts, whole = write_all(tmp_path_factory.mktemp("fuzzed"), damage=True)
    return Fuzzed(report=build(blend), counts=counts, whole=whole, blend=blend)


def test_every_record_of_a_damaged_blend_is_a_member_or_a_reject(fuzzed: Fuzzed) -> None:
    assert len(FORMS) * NUM_RECORDS * (WHOLE_EVERY - 1) // WHOLE_EVERY >= 500
    lines = rejects_of(fuzzed.report.path)
    for name, dataset in fuzzed.report.datasets.items():
        assert dataset.records == dataset.members + sum(dataset.rejects.values()), name
        assert dataset.records == fuzzed.counts[name], name
        assert dataset.rejects == Counter(line["reason"] for line in lines if line["dataset"] == name)
        assert dataset.rejects
    assert len(lines) == sum(sum(dataset.rejects.values()) for dataset in fuzzed.report.datasets.values())
    assert shards.verify(shards.open(fuzzed.report.path)).problems == []


def test_every_damaged_record_has_a_named_reason_and_none_is_unforeseen(fuzzed: Fuzzed) -> None:
    lines = rejects_of(fuzzed.report.path)
    reasons = Counter(line["reason"] for line in lines)
    assert reasons.keys() <= REASONS.keys() - {"internal_error"}, [
        line for line in lines if line["reason"] == "internal_error"
    ]
    assert len(reasons) >= 14, reasons  # the mutations reach far
    assert all(line["detail"] and line["file"] and line["record"] for line in lines)


def test_records_left_alone_are_the_same_samples_as_in_a_build_without_damage(fuzzed: Fuzzed, tmp_path: Path) -> None:
    blend, counts, _ = write_all(tmp_path, damage=False)
    report = build(blend)
    assert {name: (one.members, sum(one.rejects.values())) for name, one in report.datasets.items()} == {
        name: (count, 0) for name, count in counts.items()
    }
    undamaged, found = samples_by_record(report.path), samples_by_record(fuzzed.report.path)
    records = [(name, record) for name, names in fuzzed.whole.items() for record in names]
    assert len(records) >= 100
    for record in records:
        assert found[record] == undamaged[record], record


def test_the_same_damage_gives_the_same_files_for_any_number_of_workers(fuzzed: Fuzzed, tmp_path: Path) -> None:
    build(fuzzed.blend, out=tmp_path / "again", workers=2)
    assert files_of(tmp_path / "again") == files_of(fuzzed.report.path)
