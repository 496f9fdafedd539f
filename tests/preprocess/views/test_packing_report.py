"""`dsvl-prep stats` reports how full sequences will be: as the loader makes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import shards
from preprocess.cli import cli
from preprocess.views.packing_report import packing_report, packing_report_text
from shards import Build
from shards.loader import Loader
from tests.support.handmade_builds import Handmade, draft
from tests.support.small_blends import build as compile_blend
from tests.support.small_blends import chat_blend, chat_record


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    records = [chat_record(number, rounds=1 + number % 7) for number in range(50)]
    blend = chat_blend(tmp_path_factory.mktemp("packing"), records, limits={"max_length": 512})
    return shards.open(compile_blend(blend).path)


@pytest.mark.parametrize("max_length", [448, 512, 1024])
def test_packing_report_is_that_of_the_loaders_epoch(build: Build, max_length: int) -> None:
    report = packing_report(build, max_length)
    assert report is not None
    sequences = filled = 0
    for batch in Loader(build, batch_size=1, max_length=max_length, epochs=1, decode="none"):
        sequences += 1
        filled += int((batch.segment_ids > 0).sum())
    assert (report.sequences, report.samples, report.too_long) == (sequences, 50, 0)
    assert report.packed == filled / (sequences * max_length)
    assert 0 < report.padded <= 1


def test_padding_is_counted_against_the_longest_of_each_batch(build: Build) -> None:
    report = packing_report(build, 512)
    assert report is not None
    positions = filled = 0
    for batch in Loader(build, batch_size=16, max_length=512, epochs=1, packed=False, decode="none"):
        samples = sum(map(len, batch.samples))
        lengths = (batch.segment_ids > 0).sum(1)
        positions += samples * int(lengths.max())
        filled += int(lengths.sum())
    assert report.padded == filled / positions


def test_samples_that_no_sequence_can_hold_are_counted(build: Build) -> None:
    text, _, _ = build["train"].counts(build.order().samples(0, 0, 50))
    report = packing_report(build, 100)
    assert report is not None
    assert report.too_long == int((text > 100).sum()) > 0
    assert f"; {report.too_long} samples are too long: the loader refuses them" in packing_report_text(report)
    nothing = packing_report(build, 1)
    assert nothing is not None
    assert (nothing.sequences, nothing.packed, nothing.padded) == (0, 0.0, 0.0)


def test_a_big_epoch_is_judged_by_windows_spread_over_it(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.views.packing_report.WINDOW", 10)
    monkeypatch.setattr("preprocess.views.packing_report._MOST_WINDOWS", 2)
    report = packing_report(build, 512)
    assert report is not None
    assert (report.samples, report.epoch_samples) == (20, 50)
    assert "(20 of an epoch's samples)" in packing_report_text(report)


def test_the_command_takes_the_builds_own_limit_unless_another_is_given(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    location = str(Path(build.store.location))
    for options, length in (([], 512), (["--max-length", "300"], 300)):
        cli(["stats", "--build", location, "--json", *options], standalone_mode=False)
        assert json.loads(capsys.readouterr().out)["packing"]["max_length"] == length
        cli(["stats", "--build", location, *options], standalone_mode=False)
        assert f"sequences of {length} tokens: " in capsys.readouterr().out


def test_a_build_without_training_samples_has_no_packing(tmp_path: Path) -> None:
    build = Handmade(tmp_path)
    build.add([draft(1, split="eval")], split="eval")
    assert packing_report(shards.open(build.finish()), 512) is None
