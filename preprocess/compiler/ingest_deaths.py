"""Worker processes that die while they read annotations: the record at which they died twice is left out.

Rule: a file outside of whose records they died twice, or a record that cannot even be left out, is an error that names
it, in this run and the next. See worker_deaths.py, and parsing/record_watch.py for what is noted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.record_watch import RecordWatch, watched_item, watching
from preprocess.compiler.worker_deaths import DEADLY, causes_of_deaths, deadly_items, died_detail, noting, removal
from preprocess.errors import DataError


@contextmanager
def surviving(request: Request, marker: Path, result: Path) -> Iterator[None]:
    """Within it, what is read of the request is noted, and records at which workers died are left out.

    marker: of the task; result: the file in whose name that of the dataset's result begins. Raises DataError.
    """
    deaths = causes_of_deaths(marker)
    for item, causes in deaths.items():
        _check_survivable(request, item, causes, result)
    left_out = {item: died_detail(result, cause) for item, cause in deadly_items(marker).items()}
    with (
        noting(marker) as note,
        watching(RecordWatch(request.annotations, note, left_out, is_careful=bool(deaths))),
    ):
        yield


def reading_text(request: Request, item: int) -> str:
    """What was read, in words."""
    watched = watched_item(item)
    file = request.source_file(request.annotations[watched.file])
    if watched.record is None:
        return f"the beginning or the end of {file}"
    return f"records from {watched.record} on of {file}" if watched.is_block else f"record {watched.record} of {file}"


def _check_survivable(request: Request, item: int, causes: list[str], result: Path) -> None:
    watched = watched_item(item)
    path = request.annotations[watched.file]
    if watched.record is None and len(causes) >= DEADLY:
        raise DataError(
            f"{path}: the worker process died {len(causes)} times at the beginning or the end of this file "
            f"({causes[-1]}); write the file again, or remove it from `annotations`; to try it again, {removal(result)}"
        )
    if len(causes) > DEADLY:
        raise DataError(
            f"{path}: the worker process died {len(causes)} times at {reading_text(request, item)}, also while it left "
            f"it out ({causes[-1]}); remove it from the file; to try it again, {removal(result)}"
        )
