"""Readings of annotations in which some records end the process, as a parser that crashes does.

Worker processes import this module, so it imports little.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from preprocess.adapters.parsing import record_text
from preprocess.adapters.parsing.exact_json import loads
from preprocess.compiler.ingest_stage import run_reading
from preprocess.compiler.task_report import TaskReport, unreported
from preprocess.compiler.worker_deaths import NOTE, Forgives, forgive_none
from preprocess.errors import DataError

DEADLY = "ends its process"


def run_fragile_reading(task: Any) -> Any:
    """`run_reading`, but the process ends when it parses a line with the text DEADLY."""

    def parse(line: bytes, **options: bool) -> Any:
        if DEADLY.encode() in line:
            os.kill(os.getpid(), signal.SIGKILL)
        return loads(line, **options)

    with mock.patch.object(record_text, "loads", parse):
        return run_reading(task)


class Died(BaseException):
    """The death of a process, in `mortal_engine`."""


_FOLDERS: list[Path] = []
_NOTES: dict[Path, bytes] = {}


def die() -> None:
    """End the task of `mortal_engine` as a death ends a process: its note remains."""
    _NOTES.update({path: path.read_bytes() for folder in _FOLDERS for path in folder.glob(f".*{NOTE}")})
    raise Died


def mortal_engine(
    function: Callable[[Any], Any],
    tasks: Iterable[Any],
    workers: int,
    report: TaskReport = unreported,
    forgives: Forgives = forgive_none,
) -> Iterator[tuple[int, Any]]:
    """An engine in this process, whose tasks may call `die`."""
    queue = deque(enumerate(tasks))
    while queue:
        index, task = queue.popleft()
        marker = getattr(task, "marker", None)
        _FOLDERS[:] = [marker.parent] if marker is not None else []
        _NOTES.clear()
        try:
            result = function(task)
        except Died:
            for path, content in _NOTES.items():
                path.write_bytes(content)
            if not forgives(task, "it crashed"):
                raise DataError(f"a worker process died in task {index}") from None
            queue.append((index, task))
            continue
        yield index, result
