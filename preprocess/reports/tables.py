"""The form of a report's numbers: tables, which a page draws and JSON and CSV files hold."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from preprocess.errors import ConfigError
from shards.files import replace_file

Value = str | int | float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How a table is drawn. bars: `labels` name the bars. histogram: columns `from` and `to` are edges.

    columns: the series. shown: the name of each in the legend. log: of the x axis.
    """

    kind: Literal["bars", "histogram"]
    columns: Sequence[str]
    shown: Sequence[str]
    unit: str
    labels: Sequence[str] = ()
    log: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """name: in JSON, and of the CSV file. text: what the numbers are, for people. rows: as wide as columns.

    is_of_read: whether the numbers are of the samples that were read, which may be a part of the build.
    """

    name: str
    title: str
    text: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    drawing: Drawing | None = None
    is_of_read: bool = False

    def column(self, name: str) -> list[Any]:
        place = list(self.columns).index(name)
        return [row[place] for row in self.rows]

    def to_json(self) -> list[dict[str, Value]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def check_csv_folder(folder: Path) -> None:
    """Raises ConfigError if `folder` is a file; ask before the work."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError([f"--csv {folder}: is a file; expected a folder, for a file of each table; name another one"])


def write_csv(folder: Path, tables: Sequence[Table]) -> None:
    """One file for each table. Raises OSError if it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        out = io.StringIO(newline="")
        writer = csv.writer(out)
        writer.writerow(table.columns)
        writer.writerows(table.rows)
        replace_file(folder / f"{table.name}.csv", out.getvalue().encode("utf-8", "replace"))
