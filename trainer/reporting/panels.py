"""Which curves of which runs a report draws together: one panel for each quantity.

Rule: a panel has at most as many series as a chart has colours; more of them are spread over several panels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dst.common.charts import MAX_SERIES
from trainer.reporting.journal import Curve
from trainer.reporting.runs import Run
from trainer.reporting.thinning import thin

WIDTH = 800
"""Parts of the steps that a chart tells apart; each has its lowest and its highest value"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A curve of a panel, thinned; `num_records` of the journal are behind it. lowest, highest: their steps.

    mean: over records.
    """

    name: str
    curve: Curve
    num_records: int
    first: float
    last: float
    lowest: tuple[float, float]
    highest: tuple[float, float]
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Curves to draw over each other. unit: of the values, for the axis."""

    title: str
    unit: str
    series: tuple[Series, ...]

    @property
    def is_thinned(self) -> bool:
        return any(len(series.curve.steps) < series.num_records for series in self.series)


_OF_TRAINING: Sequence[tuple[str, str, str, float]] = (
    ("tokens_per_second", "Throughput", "tokens per second", 1),
    ("trained_tokens_per_second", "Throughput of trained tokens", "trained tokens per second", 1),
    ("records_per_second", "Throughput of records", "records per second", 1),
    ("data_wait_share", "Time spent waiting for data", "% of the time", 100),
    ("padding_share", "Padding", "% of positions", 100),
    ("grad_norm", "Gradient norm before clipping", "norm", 1),
    ("memory_bytes", "Peak memory of rank 0", "GiB", 2**-30),
    ("mfu", "Model FLOPs utilization", "% of the peak", 100),
)
"""Field of a record, title, unit, factor"""


def make_panels(runs: Sequence[Run]) -> list[Panel]:
    """Loss, held-out loss, that of each dataset, learning rates, then speed and memory; none without records."""
    panels = [*_panels("Training loss", "loss", {run.name: _field(run, "loss") for run in runs})]
    panels += _panels("Held-out loss", "loss", {run.name: run.columns.held_out for run in runs})
    panels += _held_out_datasets(runs)
    panels += _panels("Learning rate", "learning rate", dict(_learning_rates(runs)))
    for field, title, unit, factor in _OF_TRAINING:
        panels += _panels(title, unit, {run.name: _scaled(_field(run, field), factor) for run in runs})
    return panels


def _held_out_datasets(runs: Sequence[Run]) -> Iterator[Panel]:
    """All datasets of one run together; of several runs, each dataset on its own."""
    if len(runs) == 1:
        yield from _panels("Held-out loss by dataset", "loss", runs[0].columns.held_out_datasets)
        return
    for dataset in dict.fromkeys(name for run in runs for name in run.columns.held_out_datasets):
        curves = {run.name: run.columns.held_out_datasets.get(dataset, _NONE) for run in runs}
        yield from _panels(f"Held-out loss of {dataset}", "loss", curves)


def _learning_rates(runs: Sequence[Run]) -> Iterator[tuple[str, Curve]]:
    """Parameter groups of a run with equal rates are one series."""
    for run in runs:
        groups: dict[bytes, list[str]] = {}
        for name, curve in run.columns.learning_rates.items():
            groups.setdefault(curve.values.tobytes(), []).append(name)
        for names in groups.values():
            label = "all groups" if len(groups) == 1 else ", ".join(names)
            yield f"{run.name}: {label}" if len(runs) > 1 else label, run.columns.learning_rates[names[0]]


_NONE = Curve(steps=np.zeros(0), values=np.zeros(0))


def _field(run: Run, name: str) -> Curve:
    return run.columns.train.get(name, _NONE)


def _scaled(curve: Curve, factor: float) -> Curve:
    return Curve(steps=curve.steps, values=curve.values * factor)


def _panels(title: str, unit: str, curves: Mapping[str, Curve]) -> Iterator[Panel]:
    series = [_series(name, curve) for name, curve in curves.items() if len(curve.known.steps)]
    parts = [series[start : start + MAX_SERIES] for start in range(0, len(series), MAX_SERIES)]
    for number, part in enumerate(parts, start=1):
        of_all = f" ({number} of {len(parts)})" if len(parts) > 1 else ""
        yield Panel(title=title + of_all, unit=unit, series=tuple(part))


def _series(name: str, curve: Curve) -> Series:
    known = curve.known
    return Series(
        name=name,
        curve=thin(curve, WIDTH),
        num_records=len(known.steps),
        first=float(known.values[0]),
        last=float(known.values[-1]),
        lowest=_at(known, np.argmin),
        highest=_at(known, np.argmax),
        mean=float(known.values.mean()),
    )


def _at(curve: Curve, find: Callable[..., np.intp]) -> tuple[float, float]:
    """The value and the step that `find` chooses."""
    place = int(find(curve.values))
    return float(curve.values[place]), float(curve.steps[place])
