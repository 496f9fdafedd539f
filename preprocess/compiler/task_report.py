"""How an engine reports its tasks while they run."""

from __future__ import annotations

from collections.abc import Callable

TaskReport = Callable[[int, int, int], None]
"""(running, waiting, failed): numbers of tasks; failed ones were lost with their node or worker, and began again"""


def unreported(running: int, waiting: int, failed: int) -> None:
    """For callers that show nothing."""
