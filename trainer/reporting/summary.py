"""The numbers of runs as rows of a table, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trainer.reporting.runs import Run, RunSummary, summarize

_ROWS: Sequence[tuple[str, Callable[[RunSummary], str | None]]] = (
    ("steps", lambda run: f"{run.steps:,}" + (f" of {run.planned_steps:,}" if run.planned_steps else "")),
    ("epochs", lambda run: _number(run.epochs, ".2f")),
    ("time of the steps", lambda run: duration(run.seconds)),
    ("training loss at the end", lambda run: _number(run.loss, ".4f")),
    ("held-out loss at the end", lambda run: _number(run.held_out, ".4f")),
    ("lowest held-out loss", lambda run: _best(run)),
    ("tokens", lambda run: f"{run.tokens:,.0f}"),
    ("tokens per second", lambda run: _number(run.tokens_per_second, ",.0f")),
    ("records per second", lambda run: _number(run.records_per_second, ",.1f")),
    ("waiting for data", lambda run: _number(run.data_wait_share, ".1%")),
    ("padding", lambda run: _number(run.padding_share, ".1%")),
    ("peak memory", lambda run: None if run.memory_bytes is None else f"{run.memory_bytes / 2**30:,.1f} GiB"),
    ("MFU", lambda run: _number(run.mfu, ".1%")),
)


def summary_rows(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(name, text for each run); without the rows of which no run knows anything."""
    summaries = [summarize(run) for run in runs]
    rows = [(name, [text(summary) for summary in summaries]) for name, text in _ROWS]
    return [(name, [text or "-" for text in texts]) for name, texts in rows if any(texts)]


def print_summary(runs: Sequence[Run]) -> None:
    """The table on stdout, and what the journals say wrongly or not at all."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dst.common.terminal_text import visible

    console = Console(highlight=False, soft_wrap=True)
    table = Table("")
    for run in runs:
        table.add_column(Text(visible(run.name)), justify="right", overflow="fold")
    for name, texts in summary_rows(runs):
        table.add_row(name, *texts)
    console.print(table)
    for run in runs:
        for problem in run.problems:
            console.print(Text(visible(f"{run.name}: {problem}")))


def duration(seconds: float) -> str:
    """Such as 2 d 3 h, 3 h 5 min, 5 min 2 s or 2.5 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days} d {hours % 24} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {int(seconds % 60)} s"


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _best(run: RunSummary) -> str | None:
    return None if run.best_held_out is None else f"{run.best_held_out:.4f} at step {run.best_step:,}"
