"""What `dsvl-train eval` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dst.common.terminal_text import visible
from shards import Build
from trainer.evaluation.blind_rows import BlindRow, difference_text
from trainer.evaluation.metrics import DatasetScore
from trainer.inference.state_cache import StateCache
from trainer.training.loop import Evaluation


def print_measures(build: Build, evaluation: Evaluation | None, scores: Sequence[DatasetScore]) -> None:
    rows = {row.dataset: row for row in scores}
    losses = dict(evaluation.datasets) if evaluation else {}
    metrics = list(dict.fromkeys(name for row in scores for name in row.metrics))
    table = Table("dataset", *(["loss"] if evaluation else []), *(["answers", *metrics] if scores else []))
    for name in build.datasets:
        if name in rows or name in losses:
            cells = [f"{losses[name]:.4f}" if name in losses else ""] if evaluation else []
            if scores:
                row = rows.get(name)
                cells.append(str(row.num_answers) if row else "")
                cells += [f"{row.metrics[metric]:.4f}" if row and metric in row.metrics else "" for metric in metrics]
            table.add_row(Text(visible(name)), *cells)
    console = _console()
    if evaluation:
        console.print(Text(f"held-out loss {evaluation.loss:.4f}"))
    if evaluation or scores:
        console.print(table)
    for row in scores:
        for line in row.notes:
            console.print(Text(visible(f"{row.dataset}: {line}")))


def images_text(cache: StateCache) -> str:
    """How many images were read for the answers, and how many were known from earlier ones."""
    return f"{cache.misses:,} images read, {cache.hits:,} known from earlier questions"


def print_images(cache: StateCache) -> None:
    if cache.hits or cache.misses:
        _console().print(Text(images_text(cache)))


def print_blind(rows: Sequence[BlindRow], notes: Sequence[str]) -> None:
    """The measures with the right images, those of other samples, and blank ones."""
    table = Table("dataset", "measure", "samples", "right images", "exchanged", "difference", "blank", "difference")
    for row in rows:
        cells = [f"{row.right:.4f}"]
        for wrong in (row.exchanged, row.blank):
            cells += [f"{wrong.value:.4f}", difference_text(wrong)]
        table.add_row(Text(visible(row.dataset)), row.measure, str(row.samples), *cells)
    console = _console()
    console.print(Text("with other samples' images, and with blank ones (95% intervals)"))
    console.print(table)
    for line in notes:
        console.print(Text(visible(line)))


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160
    return console
