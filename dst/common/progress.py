"""How a long command shows its progress: a bar with an estimate of the time left, on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from time import monotonic
from typing import Protocol

LINE_EVERY_S = 30.0
"""Between two lines of progress in a log."""

Advance = Callable[[int], None]


class Progress(Protocol):
    def step(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """One stage of the work; call what it gives with the amount that is done."""
        ...

    def tasks(self, running: int, waiting: int, failed: int) -> None:
        """How many tasks of the stage are in which state now; failed ones have begun again."""
        ...


class Silent:
    """For programs and tests."""

    @contextlib.contextmanager
    def step(self, label: str, total: int) -> Iterator[Advance]:
        yield lambda amount: None

    def tasks(self, running: int, waiting: int, failed: int) -> None:
        pass


class Bar:
    """For people: a bar, and a line now and then where stderr is a file, such as the log of a job."""

    def __init__(self) -> None:
        self._show: Callable[[str], None] = lambda text: None

    def tasks(self, running: int, waiting: int, failed: int) -> None:
        again = f", {failed} failed" if failed else ""
        self._show(f"{running} tasks running, {waiting} waiting{again}")

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
            TextColumn("{task.fields[tasks]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total, tasks="")
            log = _Log(label, total) if not bar.console.is_terminal else None

            def show(text: str) -> None:
                bar.update(task, tasks=text)
                if log:
                    log.tasks = text

            def advance(amount: int) -> None:
                bar.advance(task, amount)
                if log:
                    log.advance(amount)

            self._show = show
            try:
                yield advance
            finally:
                show("")
                self._show = lambda text: None


class _Log:
    """A line on stderr, at most one in `LINE_EVERY_S`."""

    def __init__(self, label: str, total: int) -> None:
        self.tasks = ""
        self._label, self._total = label, total
        self._done = 0
        self._last = monotonic()

    def advance(self, amount: int) -> None:
        self._done += amount
        if monotonic() - self._last >= LINE_EVERY_S:
            self._last = monotonic()
            tasks = f"; {self.tasks}" if self.tasks else ""
            print(f"{self._label}: {self._done:,} of {self._total:,}{tasks}", file=sys.stderr, flush=True)
