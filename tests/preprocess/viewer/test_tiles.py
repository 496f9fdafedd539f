"""What inspect, stats, the viewer and reports say of images with tiles."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import shards
from preprocess.reports.build_report import make_report
from preprocess.viewer.opened_build import OpenedBuild
from preprocess.viewer.sample_page import token_rows, view_sample
from preprocess.viewer.selection import counts_of
from preprocess.viewer.sequences import spans_of
from preprocess.views.diff import compare_builds
from preprocess.views.inspect import inspect_samples, print_sample
from preprocess.views.stats import build_stats, print_stats
from shards import Build
from shards.images.tiles import Grid
from tests.support.tiled_builds import IMAGE_TOKENS, SIZES, tiled
from tests.support.viewed_builds import app_of


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    images = [[size] for size in SIZES] + [[], [(96, 64), (64, 64)]]
    return tiled(tmp_path_factory.mktemp("tiled"), images=images, image={"tiles_multi": 2})


def length(sample: shards.Sample) -> int:
    return len(sample.ids) - len(sample.images) + sample.tiles * IMAGE_TOKENS


def test_stats_count_tiles_and_lengths_with_them(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    samples = list(build["train"])
    (row,) = build_stats(build)
    assert row["tiles"] == sum(sample.tiles for sample in samples) > row["images"]
    assert (row["length_sum"], row["length_max"]) == (sum(map(length, samples)), max(map(length, samples)))
    print_stats([row], {})
    printed = capsys.readouterr().out
    assert "tiles" in printed
    assert f" {row['tiles']} " in printed
    print_stats([{**row, "tiles": row["images"]}], {})
    assert "tiles" not in capsys.readouterr().out


def test_the_report_draws_how_many_tiles_images_have(build: Build) -> None:
    report = make_report(build.store.location)
    (table,) = [table for table in report.tables if table.name == "tiles"]
    expected = [grid.tiles for sample in build["train"] for grid in sample.grids]
    assert sum(int(str(row[-1])) for row in table.rows) == len(expected)
    (contents,) = [table for table in report.tables if table.name == "contents"]
    tokens = contents.rows[0][contents.columns.index("tokens")]
    assert tokens == sum(map(length, build["train"]))


def test_inspect_says_how_each_image_is_cut(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    for inspected in inspect_samples(build.store.location):
        print_sample(inspected)
    printed = capsys.readouterr().out
    for sample in build["train"]:
        for image, grid in zip(sample.metadata["images"], sample.grids, strict=True):
            size = f"{image['name']}  {image['width']} x {image['height']}"
            text = f"{size}  {grid.columns} x {grid.rows} tiles and an overview  " if grid.tiles > 1 else f"{size}  "
            assert text in printed


def test_a_sample_page_counts_the_tokens_of_all_tiles(build: Build) -> None:
    opened = OpenedBuild(str(build.store.location))
    for number, sample in enumerate(build["train"]):
        view = view_sample(opened, number)
        assert not view.fault
        assert (view.length, view.tiles) == (length(sample), sample.tiles)
        rows = token_rows(sample, opened.tokenizer, IMAGE_TOKENS, 0, 10**6)
        assert rows[0].first == 0
        assert all(one.last + 1 == other.first for one, other in pairwise(rows))
        assert rows[-1].last + 1 == length(sample)
        of_images = [row.last + 1 - row.first for row in rows if row.image is not None]
        assert of_images == [grid.tiles * IMAGE_TOKENS for grid in sample.grids]
        spans = spans_of(sample, image_id=opened.tokenizer.image_id, image_tokens=IMAGE_TOKENS)
        assert spans[-1].end == length(sample)
        assert [span.end - span.start for span in spans if span.image is not None] == of_images
    lengths, images = counts_of(build, np.arange(len(build)))
    assert lengths.tolist() == [length(sample) for sample in build["train"]]
    assert images.tolist() == [len(sample.images) for sample in build["train"]]


def test_the_page_of_a_sample_draws_lines_between_tiles_that_the_file_shows(build: Build, tmp_path: Path) -> None:
    opened = OpenedBuild(str(build.store.location))
    (image,) = view_sample(opened, 0).images
    assert (image.grid, image.lines) == (Grid(3, 2), "M1 0V2M2 0V2M0 1H3")
    ask = app_of(Path(build.store.location).parent)
    assert 'viewBox="0 0 3 2"' in ask("/number/0").text
    assert "<path" not in ask(f"/number/{SIZES.index((33, 31))}").text
    padded = tiled(tmp_path, images=[[(96, 40)]], image={"fit": "pad"})
    assert not view_sample(OpenedBuild(str(padded.store.location)), 0).images[0].lines, "its tiles have borders"


def test_a_build_with_tiles_is_told_from_one_without_by_its_settings(build: Build, tmp_path: Path) -> None:
    plain = tiled(tmp_path, images=[[size] for size in SIZES], image={"tiles": 1})
    settings = compare_builds(plain, build).to_json()["settings"]
    got = {setting["name"]: (setting.get("old"), setting.get("new")) for setting in settings}
    assert got["image.tiles"] == (None, 6)
    assert got["image.tiles_multi"] == (None, 2)
