"""The page of `dsvl-train report`: charts of all runs over each other, and nothing from data that acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import Chromium, is_accessible
from tests.support.run_folders import write_run
from trainer.reporting import panels
from trainer.reporting.page import write_report_page
from trainer.reporting.runs import read_runs

HOSTILE = "<script>alert(1)</script>$x$\x1b[31m"


def page_of(folder: Path, *runs: Path) -> str:
    path = folder / "report.html"
    write_report_page(path, read_runs(runs))
    return path.read_text(encoding="utf-8")


def entry(step: int, loss: float, **values: object) -> dict[str, object]:
    """With few numbers, since a chart takes a tenth of a second."""
    return {"kind": "train", "step": step, "loss": loss, **values}


def test_runs_are_drawn_over_each_other_with_their_numbers_and_settings(tmp_path: Path) -> None:
    held_out = {"kind": "eval", "step": 20, "loss": 1.5, "datasets": {"coco": 1.25}}
    first = write_run(tmp_path / "a", [entry(10, 4.0, lr={"decoder": 1.0}), entry(20, 3.0), held_out], seed=1)
    second = write_run(tmp_path / "b", [entry(10, 5.0)], seed=2)
    html = page_of(tmp_path, first, second)
    charts = html.split("<svg ")[1:]
    titles = ["Training loss", "Held-out loss", "Held-out loss of coco", "Learning rate"]
    assert [chart.partition('aria-label="')[2].partition('"')[0] for chart in charts] == titles
    assert [f"{name}</text>" in charts[0] for name in ("a", "b", "c")] == [True, True, False]
    assert html.count("<details>") == len(charts) + 2
    assert "1.5000 at step 20" in html
    assert "Settings that differ" in html
    assert "http" not in html.replace('http-equiv="Content-Security-Policy"', "").replace("http://www.w3.org", "")


def test_names_from_data_are_text(tmp_path: Path) -> None:
    rates = {"kind": "train", "step": 10, "lr": {HOSTILE: 1.0, "b": 2.0}}
    held_out = {"kind": "eval", "step": 10, "loss": 1.5, "datasets": {HOSTILE: 1.25}}
    html = page_of(tmp_path, write_run(tmp_path / "a", [rates, held_out], build=HOSTILE))
    assert "<script" not in html
    assert "\x1b" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;$x$") >= 4


def test_the_page_says_if_it_thinned_a_curve_and_what_a_journal_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panels, "WIDTH", 2)
    steps = [*range(10, 120, 10), 115, 120]
    html = page_of(tmp_path, write_run(tmp_path / "a", [entry(step, 1.0) for step in steps]))
    assert "equal parts; the chart shows the lowest and the highest value of each." in html
    assert "a: stopped and resumed after step 115" in html


def test_a_run_without_records_has_a_page_that_says_so(tmp_path: Path) -> None:
    html = page_of(tmp_path, write_run(tmp_path / "a", []))
    assert "a: no record yet" in html
    assert "There is nothing to draw yet." in html
    assert "<svg" not in html


def test_the_page_reads_well_in_a_browser(tmp_path: Path, chromium: Chromium) -> None:
    held_out = {"kind": "eval", "step": 10, "loss": 1.5, "datasets": {HOSTILE: 1.25}}
    page_of(tmp_path, write_run(tmp_path / "a", [entry(10, 4.0), held_out], build="a" * 200))

    def check(page: Any) -> list[str]:
        assert page.locator("svg[role=img]").count() == 3
        return is_accessible(page)

    for width, dark in ((375, True), (1200, False)):
        assert chromium.look(f"file://{tmp_path / 'report.html'}", check, width=width, dark=dark) == []
