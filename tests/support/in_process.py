"""An engine of the compiler that starts no process, which would take most of a small build's time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import TypeVar
from unittest import mock

from preprocess.compiler import engines
from preprocess.compiler.task_errors import USERS_TO_MEND, failure_text
from preprocess.compiler.task_report import TaskReport, unreported
from preprocess.compiler.worker_deaths import Forgives, forgive_none
from preprocess.errors import DataError

_CACHED = type(lru_cache(len))

T = TypeVar("T")
R = TypeVar("R")


def in_this_process(
    function: Callable[[T], R],
    tasks: Iterable[T],
    workers: int,
    report: TaskReport = unreported,
    forgives: Forgives = forgive_none,
) -> Iterator[tuple[int, R]]:
    """The results in the order of the tasks, and the errors of the process engine.

    As in a new process, nothing is remembered from earlier tasks.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("preprocess."):
            for value in vars(module).values():
                if isinstance(value, _CACHED):
                    value.cache_clear()
    for index, task in enumerate(tasks):
        try:
            result = function(task)
        except USERS_TO_MEND as error:
            raise DataError(failure_text(error)) from error
        yield index, result


def without_processes() -> mock._patch_dict:
    """Builds start no process within this context."""
    return mock.patch.dict(engines.ENGINES, {"process": in_this_process})
