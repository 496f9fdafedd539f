"""All numbers of a build, as tables, and the page that draws them.

The page is one file without script that needs no network. The same build gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dst.common.charts import bars, histogram
from dst.common.html_pages import page_environment, page_policy
from preprocess.reports.index_numbers import index_tables
from preprocess.reports.parts import read_parts
from preprocess.reports.sample_numbers import read_samples, sample_tables
from preprocess.reports.tables import Table, Value
from preprocess.viewer.opened_build import OpenedBuild
from preprocess.viewer.rejects import RejectedRecord, RejectFilters
from shards import ShardError
from shards.files import replace_file

DEFAULT_READ = 20_000
_EXAMPLES = 3
_DRAWN_BARS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """read, samples: how many samples of how many were read for the tables of texts. faults: what could not be."""

    location: str
    hash: str
    read: int
    samples: int
    tables: tuple[Table, ...]
    faults: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "samples": self.samples,
            "faults": list(self.faults),
            **{table.name: table.to_json() for table in self.tables},
        }


def make_report(location: str | Path, *, max_length: int | None = None, read: int = DEFAULT_READ) -> BuildReport:
    """max_length: of packed sequences, besides the build's. read: most samples to read. Raises ShardError."""
    opened = OpenedBuild(location)
    length = max_length or opened.build.manifest.config.limits.max_length
    numbers = read_samples(opened, read)
    faults = list(numbers.damaged)
    tables = [*index_tables(opened.build, read_parts(opened.build), length), *sample_tables(numbers)]
    try:
        tables.append(_reject_examples(opened))
    except ShardError as error:
        faults.append(str(error))
    return BuildReport(
        location=str(location),
        hash=opened.build.manifest.hash,
        read=numbers.read,
        samples=opened.num_samples,
        tables=tuple(tables),
        faults=tuple(faults),
    )


def write_page(page: Path, report: BuildReport) -> None:
    """Raises ConfigError without matplotlib, OSError if the page cannot be written."""
    environment = page_environment(Path(__file__).parent)
    html = environment.get_template("report.html.jinja").render(
        policy=page_policy(),
        report=report,
        charts={table.name: chart for table in report.tables if (chart := draw(table))},
        drawn_bars=_DRAWN_BARS,
    )
    replace_file(page, html.encode())


def draw(table: Table) -> str:
    """A table as SVG; empty for one that is not drawn. Names in it are escaped."""
    drawing = table.drawing
    if drawing is None or not table.rows:
        return ""
    series: Mapping[str, Sequence[float]] = {
        shown: table.column(column) for shown, column in zip(drawing.shown, drawing.columns, strict=True)
    }
    if drawing.kind == "histogram":
        edges = [*table.column("from"), table.column("to")[-1]]
        if drawing.log:
            edges[0] = max(edges[0], 0.5)  # a logarithmic axis has no 0
        return histogram(table.title, edges, series, unit=drawing.unit, log=drawing.log)
    labels = zip(*map(table.column, drawing.labels), strict=True)
    names = [" · ".join(map(str, label)) for label in labels][:_DRAWN_BARS]
    return bars(
        table.title, names, {label: list(values)[:_DRAWN_BARS] for label, values in series.items()}, unit=drawing.unit
    )


def _reject_examples(opened: OpenedBuild) -> Table:
    """The first rejects of each dataset and reason; rejects.jsonl is read until all are found."""
    seen: dict[tuple[str, str], list[RejectedRecord]] = {
        (dataset, reason): [] for dataset, info in opened.build.manifest.datasets.items() for reason in info.rejects
    }
    missing = sum(
        min(count, _EXAMPLES) for info in opened.build.manifest.datasets.values() for count in info.rejects.values()
    )
    for reject in opened.rejects.every(RejectFilters()) if missing else ():
        examples = seen.get((reject.dataset, reject.reason))
        if examples is not None and len(examples) < _EXAMPLES:
            examples.append(reject)
            missing -= 1
        if not missing:
            break
    rows: list[list[Value]] = [
        [reject.dataset, reject.reason, reject.file, reject.record, reject.detail or reject.fault]
        for examples in seen.values()
        for reject in examples
    ]
    return Table(
        name="reject_examples",
        title="Examples of rejects",
        text=f"At most {_EXAMPLES} of each dataset and reason.",
        columns=("dataset", "reason", "file", "record", "detail"),
        rows=rows,
    )
