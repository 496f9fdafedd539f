"""The result of a fetch, for people and for --json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.images.fetched import STATES

MISSING = "missing.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchReport:
    """states: state -> number of URLs of the blend. new: downloaded in this run. size_bytes: of all that are there."""

    folder: Path
    states: dict[str, int]
    new: int
    size_bytes: int

    @property
    def unreachable(self) -> int:
        return self.states.get("unreachable", 0)

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "urls": sum(self.states.values()),
            "states": self.states,
            "new": self.new,
            "size_bytes": self.size_bytes,
            "missing": str(self.folder / MISSING),
        }


def print_fetched(report: FetchReport) -> None:
    """One line per state, on stdout."""
    from preprocess.terminal import cell, results

    console = results()
    console.print(cell(f"{report.folder}: {sum(report.states.values()):,} URLs, {report.new:,} downloaded now"))
    for state, count in sorted(report.states.items(), key=lambda item: (-item[1], item[0])):
        size = f", {report.size_bytes:,} bytes" if state == "fetched" else ""
        console.print(cell(f"  {state} {count:,}{size}: {STATES[state]}"))
    if set(report.states) - {"fetched"}:
        console.print(cell(f"each URL without a file, with the reason: {report.folder / MISSING}"))
