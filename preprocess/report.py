"""What became of every dataset: counts for people, for --json and for the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocess.split import NAMES


@dataclass(slots=True, kw_only=True)
class DatasetReport:
    """records = members + rejects. tokens: ids stored, an image counting as one. share: of a blend epoch's draws."""

    name: str
    records: int
    inputs: list[dict[str, Any]]
    members: int = 0
    images: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    draws: int = 0
    share: float = 0.0
    splits: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 0))
    rejects: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def samples(self) -> int:
        return sum(self.splits.values())

    def add(self, split: str, result: Mapping[str, Any]) -> None:
        """Count the result of one compile task."""
        self.members += result["members"]
        self.tokens += result["ids"]
        self.notes.update(result["notes"])
        self.rejects.update(reason for reason, *_ in result["rejects"])
        if result["shard"] is not None:
            self.splits[split] += result["shard"]["samples"]
            self.images += result["shard"]["images"]
            self.trained_tokens += result["shard"]["trained_tokens"]

    def to_json(self) -> dict[str, Any]:
        return {
            "records": self.records,
            "members": self.members,
            "samples": self.samples,
            "splits": dict(self.splits),
            "rejects": dict(sorted(self.rejects.items())),
            "notes": dict(sorted(self.notes.items())),
            "images": self.images,
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "share": self.share,
        }


@dataclass(slots=True, kw_only=True)
class BuildReport:
    path: Path
    datasets: dict[str, DatasetReport]
    reused_tasks: int
    built_tasks: int

    def to_json(self) -> dict[str, Any]:
        return {
            "datasets": {name: dataset.to_json() for name, dataset in self.datasets.items()},
            "reused_tasks": self.reused_tasks,
            "built_tasks": self.built_tasks,
        }


def print_report(report: BuildReport) -> None:
    """The table on stdout."""
    from rich.table import Table

    from preprocess.terminal import results

    table = Table(title=f"build {report.path}", title_justify="left")
    for title in ("dataset", "records", "train", "eval", "rejects", "images", "tokens", "trained", "share"):
        left = title in ("dataset", "rejects")
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    for dataset in report.datasets.values():
        rejects = "\n".join(f"{count} {reason}" for reason, count in dataset.rejects.most_common())
        table.add_row(
            dataset.name,
            f"{dataset.records:,}",
            f"{dataset.splits['train']:,}",
            f"{dataset.splits['eval']:,}",
            rejects or "0",
            f"{dataset.images:,}",
            f"{dataset.tokens:,}",
            f"{dataset.trained_tokens:,}",
            f"{dataset.share:.1%}",
        )
    console = results()
    console.print(table)
    notes = Counter[str]()
    for dataset in report.datasets.values():
        notes.update({f"{dataset.name} {note}": count for note, count in dataset.notes.items()})
    if notes:
        console.print("changed on the way: " + ", ".join(f"{name} {count:,}" for name, count in sorted(notes.items())))
    console.print(f"tasks: {report.built_tasks} built, {report.reused_tasks} reused")
