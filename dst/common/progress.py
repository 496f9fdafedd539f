"""How a long command shows its progress: a bar with an estimate of the time left, on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    def step(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """One stage of the work; call what it gives with the amount that is done."""
        ...


class Silent:
    """For programs and tests."""

    @contextlib.contextmanager
    def step(self, label: str, total: int) -> Iterator[Advance]:
        yield lambda amount: None


class Bar:
    """For people."""

    @contextlib.contextmanager
    def step(self, label: str, total: int) -> Iterator[Advance]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total)
            yield lambda amount: bar.advance(task, amount)
