"""Training runs as reports see them: the journal, the settings, and a line of numbers for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dst.common.dotted_paths import leaves
from dst.common.yaml_files import read_yaml
from dst.errors import ConfigError
from trainer.config.run import RESOLVED
from trainer.reporting.journal import F64, Curve, JournalColumns, read_columns
from trainer.training.metrics import JSONL


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run. name: as legends call it, unique in the report. settings: dotted path -> value as JSON text.

    problems: sentences about what the journal does not say or says wrongly.
    """

    name: str
    folder: Path
    settings: Mapping[str, str]
    columns: JournalColumns
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """Numbers of a whole run; None where no record says it.

    steps, epochs: done so far. planned_steps: of the schedule, if it is given in steps. seconds: time of the steps,
    without evaluations, checkpoints and pauses. tokens: positions without padding. records_per_second: of samples, each
    branch counted as one. Rates and shares are means over that time. best_held_out: the lowest mean held-out loss;
    best_step: where.
    """

    steps: int
    planned_steps: int | None
    epochs: float | None
    seconds: float
    loss: float | None
    held_out: float | None
    best_held_out: float | None
    best_step: int | None
    tokens: float
    tokens_per_second: float | None
    records_per_second: float | None
    data_wait_share: float | None
    padding_share: float | None
    memory_bytes: float | None
    mfu: float | None


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Raises ConfigError for folders that are not those of runs, or whose config.yaml is broken; all at once."""
    problems = [problem for folder in folders for problem in _not_a_run(folder)]
    if problems:
        raise ConfigError(problems)
    return [_read_run(folder, name) for folder, name in zip(folders, unique_names(folders), strict=True)]


def unique_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ from each other; a folder that is given twice gets a number."""
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for number, own in enumerate(parts):
        others = [other for other in parts if other != own]
        length = next((n for n in range(1, len(own)) if all(own[-n:] != other[-n:] for other in others)), len(own))
        twice = parts[:number].count(own)
        names.append("/".join(own[-length:]) + (f" ({twice + 1})" if twice else ""))
    return names


def differing_settings(runs: Sequence[Run]) -> list[tuple[str, list[str | None]]]:
    """(dotted path, value in each run) of each setting that is not the same in all runs; None where it is not set."""
    paths = dict.fromkeys(path for run in runs for path in run.settings)
    rows = [(path, [run.settings.get(path) for run in runs]) for path in paths]
    return [(path, values) for path, values in rows if len({*values}) > 1]


def summarize(run: Run) -> RunSummary:
    """The numbers of a run, as far as its journal goes."""
    train, held_out = run.columns.train, run.columns.held_out.known
    steps = next(iter(train.values())).steps if train else np.zeros(0)
    seconds = _seconds(run, steps)
    best = int(np.argmin(held_out.values)) if len(held_out.values) else None
    return RunSummary(
        steps=int(steps.max(initial=0)),
        planned_steps=_whole(run.settings.get("schedule.steps")),
        epochs=_last(train.get("epoch")),
        seconds=float(seconds.sum()),
        loss=_last(train.get("loss")),
        held_out=_last(held_out),
        best_held_out=None if best is None else float(held_out.values[best]),
        best_step=None if best is None else int(held_out.steps[best]),
        tokens=_total(train.get("tokens_per_second"), seconds),
        tokens_per_second=_mean(train.get("tokens_per_second"), seconds),
        records_per_second=_mean(train.get("records_per_second"), seconds),
        data_wait_share=_mean(train.get("data_wait_share"), seconds),
        padding_share=_mean(train.get("padding_share"), seconds),
        memory_bytes=_highest(train.get("memory_bytes")),
        mfu=_mean(train.get("mfu"), seconds),
    )


def _not_a_run(folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        yield f"{folder}: no such folder; expected the `out` folder of a run of dsvl-train"
    elif not any((folder / name).is_file() for name in (JSONL, RESOLVED)):
        yield f"{folder}: has neither {JSONL} nor {RESOLVED}; expected the `out` folder of a run of dsvl-train"


def _read_run(folder: Path, name: str) -> Run:
    settings = leaves(read_yaml(folder / RESOLVED)) if (folder / RESOLVED).is_file() else {}
    columns = read_columns(folder)
    return Run(
        name=name, folder=folder, settings=settings, columns=columns, problems=tuple(_problems(settings, columns))
    )


def _problems(settings: Mapping[str, str], columns: JournalColumns) -> Iterator[str]:
    if not settings:
        yield f"no {RESOLVED}, so its settings are unknown"
    loss = columns.train.get("loss")
    if loss is None:
        yield "no record yet"
        return
    if columns.num_bad_lines:
        lines = "line" if columns.num_bad_lines == 1 else "lines"
        yield f"left out {columns.num_bad_lines:,} {lines} of {JSONL}, cut or damaged"
    if len(wrong := loss.steps[~np.isfinite(loss.values)]):
        records = "record" if len(wrong) == 1 else "records"
        yield f"NaN or infinite loss in {len(wrong):,} {records}, the first at step {wrong[0]:,.0f}"
    every = _whole(settings.get("logging.every"))
    stops = [f"{step:,.0f}" for step in loss.steps[:-1] if every and step % every]
    if stops and len(stops) <= 1 + len(loss.steps) // 10:  # more of them come from another logging.every
        more = f" and {len(stops) - 5:,} more" if len(stops) > 5 else ""
        yield f"stopped and resumed after step {', '.join(stops[:5])}{more}"


def _seconds(run: Run, steps: F64) -> F64:
    """The time that each record covers, float64 [records]. The first one covers what the run logs at a time."""
    per_step = run.columns.train.get("seconds_per_step")
    if per_step is None or not len(steps):
        return np.zeros(len(steps))
    first = min(steps[0], _whole(run.settings.get("logging.every")) or steps[0])
    covered = np.maximum(np.diff(steps, prepend=steps[0] - first), 0.0)
    return np.nan_to_num(covered * per_step.values, posinf=0.0)


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _last(curve: Curve | None) -> float | None:
    return float(curve.known.values[-1]) if curve is not None and len(curve.known.values) else None


def _highest(curve: Curve | None) -> float | None:
    return float(curve.known.values.max()) if curve is not None and len(curve.known.values) else None


def _total(curve: Curve | None, seconds: F64) -> float:
    return 0.0 if curve is None else float(np.nansum(np.where(np.isfinite(curve.values), curve.values, 0.0) * seconds))


def _mean(curve: Curve | None, seconds: F64) -> float | None:
    """By time."""
    if curve is None:
        return None
    known = np.isfinite(curve.values)
    whole = seconds[known].sum()
    return float((curve.values[known] * seconds[known]).sum() / whole) if whole > 0 else None
