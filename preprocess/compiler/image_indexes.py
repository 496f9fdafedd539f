"""What a build knows of image stores before it reads an image: indexes of archives, and listings of remote folders.

Rule: an index stays until its archive changes; a listing is of now, so each build makes it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from preprocess.compiler.task_runner import TaskRunner
from preprocess.errors import DataError
from preprocess.images.listings import is_listed
from preprocess.images.stores import is_prepared, prepare_store


def index_archives(stores: Iterable[Path], cache: Path, run: TaskRunner) -> None:
    """Index the archives whose index is not there. Raises DataError that names all archives that cannot be used."""
    tasks = [(path, cache) for path in dict.fromkeys(stores) if not is_listed(path) and not is_prepared(path, cache)]
    if tasks:
        _raise_all(run("indexing", prepare, tasks, known=lambda task: None))


def list_folders(stores: Iterable[Path], cache: Path, run: TaskRunner) -> None:
    """List the folders in object storage. Raises DataError that names all that cannot be listed."""
    tasks = [(path, cache) for path in dict.fromkeys(stores) if is_listed(path)]
    if tasks:
        _raise_all(run.every_time("listing", prepare, tasks))


def prepare(task: tuple[Path, Path]) -> str:
    """Why a store cannot be used; "" if it can."""
    try:
        prepare_store(*task)
    except DataError as error:
        return str(error)
    return ""


def _raise_all(errors: list[str]) -> None:
    if any(errors):
        raise DataError("\n".join(filter(None, errors)))
