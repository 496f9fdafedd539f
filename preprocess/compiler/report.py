"""The result for every dataset: counts for people, for --json and for the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocess.compiler.split_assignment import NAMES
from preprocess.compiler.task import TaskResult
from shards.format.manifest import EvaluationQuestions
from shards.format.shard_info import ShardList

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN_FILES = 4


@dataclass(slots=True, kw_only=True)
class DatasetReport:
    """records = members + rejects. tokens: stored ids, with one for each image. share: of a blend epoch's draws.

    absent: the adapter's annotation patterns that matched nothing, where each of them should match. forms,
    ignored_keys: records of each form, and with each key that the adapter does not read. unused_names: settings whose
    name no record has. official_files: annotation
    file whose name says val or test -> its number of official val and test records. official_use: what the blend makes
    of those. filtered: rule of the filter -> records, which are the rejects with the reason `filtered`. images_hint:
    where the images are, if many of them are missing. to_draw: what the blend's amounts count: train samples, each
    branch as one. with_branches: samples that several records share.
    """

    name: str
    records: int
    inputs: Sequence[Mapping[str, Any]]
    absent: tuple[str, ...] = ()
    official_files: Mapping[str, int] = field(default_factory=dict)
    official_use: str = ""
    members: int = 0
    images: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    images_hint: str = ""
    draws: int = 0
    to_draw: int = 0
    with_branches: int = 0
    share: float = 0.0
    splits: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 0))
    rejects: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    ignored_keys: Counter[str] = field(default_factory=Counter)
    unused_names: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        return sum(self.splits.values())

    def add(self, split: str, result: TaskResult) -> None:
        """Count the result of one compile task."""
        self.members += result.members
        self.tokens += result.ids
        self.notes.update(result.notes)
        self.rejects.update(result.rejects)
        self.filtered.update(result.filtered)
        if result.shard is not None:
            self.splits[split] += result.shard.samples
            self.to_draw += ShardList([result.shard]).records if split == "train" else 0
            self.with_branches += sum(result.shard.by_branches[1:])
            self.images += result.shard.images
            self.trained_tokens += result.shard.trained_tokens

    def to_json(self) -> dict[str, Any]:
        return {
            "records": self.records,
            "members": self.members,
            "samples": self.samples,
            "samples_with_branches": self.with_branches,
            "splits": dict(self.splits),
            "rejects": dict(sorted(self.rejects.items())),
            "filtered": dict(sorted(self.filtered.items())),
            "notes": dict(sorted(self.notes.items())),
            "forms": dict(sorted(self.forms.items())),
            "ignored_keys": dict(sorted(self.ignored_keys.items())),
            "unused_names": list(self.unused_names),
            "images": self.images,
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "share": self.share,
            "absent": list(self.absent),
            "official_files": dict(self.official_files),
        }


@dataclass(slots=True, kw_only=True)
class BuildReport:
    path: Path
    datasets: dict[str, DatasetReport]
    reused_tasks: int
    built_tasks: int
    questions: Sequence[EvaluationQuestions] = ()
    """Of the evaluation sets of `decontaminate`"""
    notes: Sequence[str] = ()
    """About tokenizer and template"""
    changed: Sequence[str] = ()
    """What `--check-inputs` found, a line for each dataset"""

    def to_json(self) -> dict[str, Any]:
        return {
            "datasets": {name: dataset.to_json() for name, dataset in self.datasets.items()},
            "reused_tasks": self.reused_tasks,
            "built_tasks": self.built_tasks,
            "questions": [asdict(one) for one in self.questions],
            "notes": list(self.notes),
            "changed": list(self.changed),
        }


def print_report(report: BuildReport) -> None:
    """Print the table to stdout; below it rejects, notes, forms, ignored keys, missing files, files of val or test."""
    from preprocess.terminal import cell, results

    console = results()
    console.print(cell(f"build {report.path}", style="italic"))
    console.print(report_table(report))
    for name, dataset in report.datasets.items():
        if dataset.with_branches:
            console.print(cell(f"{name}: {_shared(dataset)}"))
        if dataset.rejects:
            console.print(cell(f"{name}: rejects: {counts_text(dataset.rejects)}"))
        if dataset.filtered:
            console.print(cell(f"{name}: filtered: {counts_text(dataset.filtered)}"))
        if dataset.notes:
            console.print(cell(f"{name}: notes (changed on the way): {counts_text(dataset.notes)}"))
        if dataset.forms:
            console.print(cell(f"{name}: forms: {counts_text(dataset.forms)}"))
        if dataset.ignored_keys:
            console.print(cell(f"{name}: ignored keys: {counts_text(dataset.ignored_keys)}"))
        if dataset.unused_names:
            console.print(cell(f"{name}: settings for names that no record has: {', '.join(dataset.unused_names)}"))
        if dataset.images_hint:
            console.print(cell(f"{name}: {dataset.images_hint}"))
        if dataset.absent:
            console.print(cell(f"{name}: not found: {', '.join(dataset.absent)}"))
        if dataset.official_files:
            console.print(cell(f"{name}: {_official(dataset)}"))
    for line in questions_lines(report.questions):
        console.print(cell(line))
    for line in (*report.notes, *report.changed):
        console.print(cell(line))
    console.print(f"tasks: {report.built_tasks} built, {report.reused_tasks} reused")


def questions_lines(questions: Sequence[EvaluationQuestions]) -> list[str]:
    """For each evaluation set with questions that match nothing: how many."""
    return [
        f"decontaminate: {one.file}: {one.too_short:,} of {one.count:,} questions have fewer than {one.ngram} words "
        "and match nothing"
        for one in questions
        if one.too_short
    ]


def report_table(report: BuildReport) -> Table:
    """One row per dataset; at most 120 columns wide."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from preprocess.terminal import cell

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("dataset", overflow="fold")
    for title in ("records", "members", "train", "eval", "rejects", "images", "tokens", "trained", "share"):
        table.add_column(title, justify="right", no_wrap=True)
    for dataset in report.datasets.values():
        counts = (
            dataset.records,
            dataset.members,
            dataset.splits["train"],
            dataset.splits["eval"],
            sum(dataset.rejects.values()),
            dataset.images,
            dataset.tokens,
            dataset.trained_tokens,
        )
        table.add_row(cell(dataset.name), *(f"{count:,}" for count in counts), f"{dataset.share:.1%}")
    return table


def _shared(dataset: DatasetReport) -> str:
    return (
        f"{dataset.members:,} records are in {dataset.samples:,} samples, {dataset.with_branches:,} of them with "
        "branches; train and eval count samples, the share of an epoch counts records"
    )


def _official(dataset: DatasetReport) -> str:
    shown, more = list(dataset.official_files)[:_SHOWN_FILES], len(dataset.official_files) - _SHOWN_FILES
    files = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
    return f"val or test by name: {files}: {sum(dataset.official_files.values()):,} records {dataset.official_use}"


def counts_text(counter: Mapping[str, int]) -> str:
    """Largest first; equal counts by name."""
    return ", ".join(
        f"{name} {count:,}" for name, count in sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    )
