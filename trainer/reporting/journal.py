"""What metrics.jsonl says of a run, as columns of numbers.

Rule: a value that is missing or not a number is NaN, and NaN is what a run that diverged has logged; both are counted,
never drawn. Memory: 8 bytes for each value, so a run of a million records takes about 200 MB.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.training.metrics import journal_lines

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A quantity over the steps of a run, both float64 [n]; NaN where it is unknown."""

    steps: F64
    values: F64

    @property
    def known(self) -> Curve:
        """Without the records in which it is not a finite number."""
        finite = np.isfinite(self.values)
        return Curve(steps=self.steps[finite], values=self.values[finite])


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalColumns:
    """The records of a run.

    train: name of a field of trainer.training.metrics.Record -> its curve. learning_rates: parameter group -> curve.
    held_out: the mean held-out loss. held_out_datasets: dataset -> held-out loss. num_bad_lines: lines that are not an
    entry, for example the last one after a crash.
    """

    train: Mapping[str, Curve]
    learning_rates: Mapping[str, Curve]
    held_out: Curve
    held_out_datasets: Mapping[str, Curve]
    num_bad_lines: int


def read_columns(folder: Path) -> JournalColumns:
    """The columns of the journal in a run's folder; all are empty before the first record. Raises OSError."""
    train, rates, held_out, datasets = _Columns(), _Columns(), _Columns(), _Columns()
    num_bad_lines = 0
    for entry in journal_lines(folder):
        step = _number(entry.get("step")) if entry is not None else math.nan
        if entry is None or not math.isfinite(step) or entry.get("kind") not in ("train", "eval"):
            num_bad_lines += 1
        elif entry["kind"] == "train":
            rates.add(step, _mapping(entry.pop("lr", None)))
            del entry["kind"], entry["step"]
            train.add(step, entry)
        else:
            held_out.add(step, {"loss": entry.get("loss")})
            datasets.add(step, _mapping(entry.get("datasets")))
    return JournalColumns(
        train=train.curves(),
        learning_rates=rates.curves(),
        held_out=held_out.curves().get("loss", Curve(steps=np.zeros(0), values=np.zeros(0))),
        held_out_datasets=datasets.curves(),
        num_bad_lines=num_bad_lines,
    )


@dataclass(slots=True)
class _Columns:
    """Records while they are read: their steps, and a value of each record by name."""

    steps: array[float] = field(default_factory=lambda: array("d"))
    values: dict[str, array[float]] = field(default_factory=dict)

    def add(self, step: float, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            column = self.values.get(name)
            if column is None:
                column = self.values[name] = array("d", [math.nan]) * len(self.steps)
            column.append(value if type(value) is float else _number(value))
        self.steps.append(step)
        if len(values) < len(self.values):
            for column in self.values.values():
                if len(column) < len(self.steps):
                    column.append(math.nan)

    def curves(self) -> dict[str, Curve]:
        steps = np.array(self.steps)
        return {name: Curve(steps=steps, values=np.array(self.values[name])) for name in sorted(self.values)}


def _number(value: Any) -> float:
    """Of an int too large for a float, infinity."""
    if not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
