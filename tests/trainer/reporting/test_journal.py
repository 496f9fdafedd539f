"""A journal becomes columns and thinned curves that lose no spike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.reporting.journal import Curve, read_columns
from trainer.reporting.thinning import thin


def test_records_become_curves_with_nan_where_a_record_has_no_number(tmp_path: Path) -> None:
    lines = [
        {"kind": "train", "step": 1, "loss": 2.0, "lr": {"decoder": 0.1}, "mfu": None},
        {"kind": "eval", "step": 1, "loss": 3.0, "datasets": {"a": 2.5}},
        {"kind": "train", "step": 2, "loss": float("nan"), "lr": {"decoder": 0.2, "lora": 1}, "grad_norm": 10**400},
        {"kind": "eval", "step": 2, "loss": 2.0, "datasets": {"a": 1.5, "b": 1.0}},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = read_columns(tmp_path)
    np.testing.assert_array_equal(columns.train["loss"].values, [2, np.nan])
    np.testing.assert_array_equal(columns.train["mfu"].values, [np.nan, np.nan])
    np.testing.assert_array_equal(columns.train["grad_norm"].values, [np.nan, np.inf])
    np.testing.assert_array_equal(columns.learning_rates["lora"].values, [np.nan, 1])
    np.testing.assert_array_equal(columns.held_out.values, [3, 2])
    np.testing.assert_array_equal(columns.held_out_datasets["b"].known.steps, [2])
    assert columns.num_bad_lines == 0


def test_lines_that_are_no_entry_are_counted_and_left_out(tmp_path: Path) -> None:
    good = b'{"kind": "train", "step": 1, "loss": 2.0, "lr": 7}\n'
    bad = [b"\xff\n", b"[]\n", b"{}\n", b'{"kind": "train", "step": "x"}\n', b'{"kind": "train", "step": NaN}\n']
    (tmp_path / "metrics.jsonl").write_bytes(good + b"".join(bad) + good[:20])
    columns = read_columns(tmp_path)
    assert (columns.train["loss"].steps.tolist(), columns.num_bad_lines) == ([1], 6)
    assert columns.learning_rates == {}


def test_a_run_without_a_record_has_empty_curves(tmp_path: Path) -> None:
    before = read_columns(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    assert before.train == read_columns(tmp_path).train == {}
    assert len(before.held_out.steps) == 0


VALUES = st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=60)


@given(VALUES, st.integers(1, 9))
def test_a_thinned_curve_has_the_extremes_of_each_part_and_the_ends(values: list[float], width: int) -> None:
    curve = Curve(steps=np.arange(len(values), dtype=np.float64) * 3 + 7, values=np.array(values, np.float64))
    known, thinned = curve.known, thin(curve, width)
    assert len(thinned.steps) <= max(2 * width + 2, 0)
    points = set(zip(known.steps, known.values, strict=True))
    assert set(zip(thinned.steps, thinned.values, strict=True)) <= points
    assert (np.diff(thinned.steps) > 0).all()
    if not len(known.steps):
        return
    assert (thinned.steps[0], thinned.steps[-1]) == (known.steps[0], known.steps[-1])
    low, span = known.steps[0], max(known.steps[-1] - known.steps[0], 1)
    parts: dict[int, list[float]] = {}
    for step, value in zip(known.steps, known.values, strict=True):
        parts.setdefault(min(int((step - low) / span * width), width - 1), []).append(value)
    for extreme in (min, max):
        assert {extreme(part) for part in parts.values()} <= set(thinned.values)
