"""Runs are named apart, summed up and compared by their settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from dst.common.charts import MAX_SERIES
from dst.errors import ConfigError
from tests.support.run_folders import record, write_run
from trainer.reporting.panels import make_panels
from trainer.reporting.runs import differing_settings, read_runs, summarize, unique_names
from trainer.reporting.summary import duration, summary_rows


def test_runs_are_named_by_the_shortest_ends_of_paths_that_differ() -> None:
    assert unique_names([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert unique_names([Path("/x/1/run"), Path("/x/2/run"), Path("/y/other")]) == ["1/run", "2/run", "other"]
    assert unique_names([Path("/x/a"), Path("/x/a"), Path("/y/a")]) == ["x/a", "x/a (2)", "y/a"]


def test_a_summary_weighs_rates_by_the_time_of_the_steps(tmp_path: Path) -> None:
    records = [
        record(10, loss=4.0, tokens_per_second=100.0, seconds_per_step=1.0, data_wait_share=0, records_per_second=2.0),
        {"kind": "eval", "step": 10, "loss": 3.0, "datasets": {}},
        record(20, loss=2.0, tokens_per_second=400.0, seconds_per_step=3.0, data_wait_share=0.5, records_per_second=6),
        {"kind": "eval", "step": 20, "loss": 3.5, "datasets": {}},
    ]
    (run,) = read_runs([write_run(tmp_path, records, schedule={"steps": 30})])
    summary = summarize(run)
    assert (summary.steps, summary.planned_steps, summary.seconds) == (20, 30, 40)
    assert (summary.loss, summary.held_out, summary.best_held_out, summary.best_step) == (2, 3.5, 3, 10)
    assert summary.tokens == 10 * 100 + 30 * 400
    assert summary.tokens_per_second == 13000 / 40
    assert summary.records_per_second == 5.0
    assert summary.data_wait_share == 0.375
    assert summary.mfu is None
    rows = dict(summary_rows([run]))
    assert rows["steps"] == ["20 of 30"]
    assert rows["records per second"] == ["5.0"]
    (panel,) = [panel for panel in make_panels([run]) if panel.title == "Throughput of records"]
    assert panel.series[0].curve.values.tolist() == [2.0, 6.0]
    assert rows["lowest held-out loss"] == ["3.0000 at step 10"]
    assert "MFU" not in rows


def test_what_a_journal_lacks_is_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [record(step) for step in (10, 17, 20, 30)] + [record(40, loss=float("nan"))])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    (tmp_path / "b").mkdir()
    (tmp_path / "b/config.yaml").write_text("build: x\n")
    runs = read_runs([folder, tmp_path / "b"])
    assert runs[0].problems == (
        "left out 1 line of metrics.jsonl, cut or damaged",
        "NaN or infinite loss in 1 record, the first at step 40",
        "stopped and resumed after step 17",
    )
    assert runs[1].problems == ("no record yet",)
    assert summarize(runs[1]).loss is None
    assert make_panels(runs[1:]) == []


def test_folders_that_are_no_runs_are_refused_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_runs([tmp_path, tmp_path / "absent"])
    assert [line.partition(";")[0] for line in caught.value.lines()] == [
        f"{tmp_path}: has neither metrics.jsonl nor config.yaml",
        f"{tmp_path / 'absent'}: no such folder",
    ]


def test_only_settings_that_differ_are_compared(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", [], batch={"max_length": 8, "packed": True})
    second = write_run(tmp_path / "b", [], batch={"max_length": 9, "packed": True}, seed=1)
    assert differing_settings(read_runs([first, second])) == [("batch.max_length", ["8", "9"]), ("seed", [None, "1"])]


def test_equal_learning_rates_are_one_curve_and_many_datasets_are_spread_over_panels(tmp_path: Path) -> None:
    datasets = {f"d{number}": 1.0 for number in range(MAX_SERIES + 1)}
    records = [
        record(10, lr={"encoder": 0.1, "decoder": 0.1, "lora": 0.2}),
        {"kind": "eval", "step": 10, "loss": 1.0, "datasets": datasets},
    ]
    first, second = (write_run(tmp_path / name, records) for name in "ab")
    titles = {panel.title: [series.name for series in panel.series] for panel in make_panels(read_runs([first]))}
    assert titles["Learning rate"] == ["decoder, encoder", "lora"]
    assert len(titles["Held-out loss by dataset (1 of 2)"]) == MAX_SERIES
    assert titles["Held-out loss by dataset (2 of 2)"] == ["d8"]
    titles = {
        panel.title: [series.name for series in panel.series] for panel in make_panels(read_runs([first, second]))
    }
    assert titles["Training loss"] == titles["Held-out loss of d3"] == ["a", "b"]
    assert titles["Learning rate"] == ["a: decoder, encoder", "a: lora", "b: decoder, encoder", "b: lora"]


def test_times_are_written_in_two_units() -> None:
    assert [duration(seconds) for seconds in (0, 59.94, 61, 3700, 200_000)] == [
        "0.0 s",
        "59.9 s",
        "1 min 1 s",
        "1 h 1 min",
        "2 d 7 h",
    ]
