"""Runs tasks on an engine, and skips those that an earlier run finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dst.common.progress import Progress
from preprocess.compiler.engines import Engine
from preprocess.compiler.worker_deaths import Forgives, WorkerDeaths, forgive_none

T = TypeVar("T")
R = TypeVar("R")


class TaskRunner:
    """Counts the tasks whose results last, those that it ran and those that it found finished."""

    def __init__(self, engine: Engine, workers: int, progress: Progress) -> None:
        self._engine = engine
        self.workers = workers
        self._progress = progress
        self.reused = self.built = 0
        self._deaths = WorkerDeaths()

    def __call__(
        self,
        label: str,
        function: Callable[[T], R],
        tasks: Sequence[T],
        *,
        known: Callable[[T], R | None],
        weight: Callable[[T], int] = lambda task: 1,
        marker: Callable[[T], Path] | None = None,
    ) -> list[R]:
        """The tasks' results, in the tasks' order.

        marker: of tasks that note what they work on (see worker_deaths), the file of the result.
        """
        results: list[R | None] = [known(task) for task in tasks]
        waiting = [index for index, result in enumerate(results) if result is None]
        self.reused += len(tasks) - len(waiting)
        self.built += len(waiting)
        if not waiting:
            return [result for result in results if result is not None]
        with self._progress.step(label, sum(weight(tasks[index]) for index in waiting)) as advance:
            todo = [tasks[index] for index in waiting]
            forgives = self._forgiving(marker) if marker else forgive_none
            for number, result in self._engine(function, todo, self.workers, self._progress.tasks, forgives):
                results[waiting[number]] = result
                advance(weight(tasks[waiting[number]]))
        return [result for result in results if result is not None]

    def every_time(
        self,
        label: str,
        function: Callable[[T], R],
        tasks: Sequence[T],
        *,
        weight: Callable[[T], int] = lambda task: 1,
    ) -> list[R]:
        """The results of tasks that look at the present state of things, so that none is ever finished before."""
        results: list[tuple[int, R]] = []
        with self._progress.step(label, sum(map(weight, tasks))) as advance:
            for number, result in self._engine(function, tasks, self.workers, self._progress.tasks):
                results.append((number, result))
                advance(weight(tasks[number]))
        return [result for _, result in sorted(results, key=lambda pair: pair[0])]

    def _forgiving(self, marker: Callable[[Any], Path]) -> Forgives:
        return lambda task, cause: self._deaths(marker(task), cause)
