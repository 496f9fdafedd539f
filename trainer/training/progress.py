"""A run's progress on stderr: a bar with the time left in a terminal, lines in a file."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from trainer.training.metrics import Record

if TYPE_CHECKING:
    from rich.progress import Progress


class Terminal(AbstractContextManager["Terminal"]):
    """The bar or the lines, and messages between them."""

    def __init__(self, total: int, *, done: int) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._total, self._done, self._from = total, done, done
        self._start = time.perf_counter()
        self._stack = ExitStack()
        self._bar: Progress | None = None

    def __enter__(self) -> Terminal:
        if self._console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bar = self._stack.enter_context(Progress(*columns, console=self._console))
            self._task = self._bar.add_task("training", total=self._total, completed=self._done, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def step(self, step: int) -> None:
        self._done = step
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, entry: Record) -> None:
        note = (
            f"loss {entry.loss:.4f}  lr {max(entry.lr.values(), default=0.0):.3g}  "
            f"{entry.tokens_per_second:,.0f} tokens/s  padding {entry.padding_share:.0%}"
        )
        if entry.mfu is not None:
            note += f"  MFU {entry.mfu:.1%}"
        if self._bar is not None:
            self._bar.update(self._task, note=note)
        else:
            self.print(f"step {entry.step}/{self._total}  {note}  left {self._left()}")

    def print(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)

    def _left(self) -> str:
        done = self._done - self._from
        seconds = (time.perf_counter() - self._start) / max(done, 1) * (self._total - self._done)
        return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
