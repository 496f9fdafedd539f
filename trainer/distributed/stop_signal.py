"""Signals that ask a run to stop: they set a flag, which is read where nothing is half done."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):  # noqa: N818 - not an error
    """A rank was asked to stop in the middle of an evaluation."""


class StopFlag:
    """Whether this process was asked to stop."""

    def __init__(self, also: Callable[[], bool] = lambda: False) -> None:
        """also: another source of the request."""
        self._asked, self._also = False, also

    def __call__(self) -> bool:
        return self._asked or self._also()

    @contextmanager
    def on_signals(self, *numbers: signal.Signals) -> Iterator[StopFlag]:
        """The first signal of each number asks to stop; a second one acts as it did before this block."""
        before = {number: signal.getsignal(number) for number in numbers}

        def ask(number: int, frame: FrameType | None) -> None:
            self._asked = True
            signal.signal(number, before[signal.Signals(number)])

        for number in numbers:
            signal.signal(number, ask)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
