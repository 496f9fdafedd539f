"""Runs tasks on a Ray cluster."""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from preprocess.compiler.task_errors import USERS_TO_MEND, failure_text
from preprocess.errors import DataError

T = TypeVar("T")
R = TypeVar("R")


def ray_engine(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[tuple[int, R]]:
    """Ray Core tasks, at most four in the queue for each worker. Tested with Ray 2.47.0 and 2.60.0."""
    ray = importlib.import_module("ray")
    if not ray.is_initialized():
        # A cluster has its own number of CPUs; Ray rejects another one.
        place = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "num_cpus": workers}
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error", **place)
    remote = ray.remote(_quietly(function))
    queue = deque(enumerate(tasks))
    running: dict[Any, int] = {}
    try:
        while queue or running:
            while queue and len(running) < 4 * workers:
                index, task = queue.popleft()
                running[remote.remote(task)] = index
            done, _ = ray.wait(list(running))
            for reference in done:
                index = running.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    cause = getattr(error, "cause", None)
                    if isinstance(cause, USERS_TO_MEND):
                        raise DataError(failure_text(cause)) from None
                    raise DataError(f"task {index} failed in Ray: {error}") from None
                yield index, result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _quietly(function: Callable[[T], R]) -> Callable[[T], R]:
    """One thread per task: the parallelism is between tasks."""

    def run(task: T) -> R:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        return function(task)

    return run
