"""Tasks whose worker process dies: which record it was at, and going on without that record.

Rules: a task notes the item that it works on (a row, an image) in a small file next to its result, which survives its
process. After a death the task is tried again, alone, so that memory is not short because of others. An item at which
workers died twice is left out from then on: `deadly_items` names it with the cause. Deaths are kept next to the result,
so the next run of the build does not begin with the same two deaths.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from preprocess.compiler.sealed_json import read_sealed, write_sealed
from preprocess.errors import DataError

MOST_DEATHS = 10
"""In one run; more say that the machine is at fault, not records."""

DEADLY = 2
"""Deaths at an item, after which it is left out."""

NOTE = ".note.partial"
"""How the names of notes end."""

_ITEM = struct.Struct("<q")
_NONE = -1

Forgives = Callable[[object, str], bool]
"""(task, cause of its worker's death) -> whether to try the task again. Raises DataError after too many deaths."""


def forgive_none(task: object, cause: str) -> bool:
    """For tasks that say nothing of what they work on."""
    return False


@contextmanager
def noting(marker: Path) -> Iterator[Callable[[int], None]]:
    """Within it, call what it yields with the number of each item, before the work on it. marker: the result's file."""
    path = _note(marker)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w+b") as file:
        file.write(_ITEM.pack(_NONE))
        file.flush()
        with mmap.mmap(file.fileno(), _ITEM.size) as memory:

            def note(item: int) -> None:
                _ITEM.pack_into(memory, 0, item)

            try:
                yield note
            finally:
                path.unlink(missing_ok=True)


def deadly_items(marker: Path) -> dict[int, str]:
    """The items of the task that are left out -> the cause of the last death at them."""
    return {item: causes[-1] for item, causes in causes_of_deaths(marker).items() if len(causes) >= DEADLY}


def causes_of_deaths(marker: Path) -> dict[int, list[str]]:
    """The items of the task at which workers died -> why, each time."""
    causes: dict[int, list[str]] = {}
    for item, cause in _deaths(marker):
        if item != _NONE:
            causes.setdefault(item, []).append(cause)
    return causes


def inherit_deaths(marker: Path, others: Iterable[Path]) -> None:
    """Let a task know of the deaths in tasks that number their items as it does."""
    deaths = [*_deaths(marker), *(death for other in others for death in _deaths(other))]
    if deaths:
        write_sealed(deaths_file(marker), deaths)


def item_now(task: object) -> str:
    """Where a task that notes its items is at, in words; "" if it notes none.

    A task with a method `item_text` says itself what an item is.
    """
    marker = getattr(task, "marker", None)
    item = _noted_item(marker) if isinstance(marker, Path) else _NONE
    if item == _NONE:
        return ""
    words = getattr(task, "item_text", None)
    return f", at {words(item)}" if words else f", at item {item if item >= 0 else -2 - item}"


def task_name(task: object) -> str:
    """What a task is about, as far as it says: its dataset, or the file that it is."""
    if isinstance(task, Path):
        return f", {task}"
    dataset = getattr(task, "dataset", None)
    name = getattr(dataset, "dataset", dataset)
    return f", dataset {name}" if isinstance(name, str) else ""


def died_detail(marker: Path, cause: str) -> str:
    """The detail of a reject `worker_died`."""
    return (
        f"the worker process died {DEADLY} times while it worked on this record ({cause}); to try it again, "
        f"{removal(marker)}"
    )


def removal(marker: Path) -> str:
    """What to do so that a task runs again."""
    return f"remove .cache/{marker.parent.name}/{marker.stem}*"


def deaths_file(marker: Path) -> Path:
    """The file of the deaths in the task, which exists if there were any."""
    return marker.with_name(f"{marker.stem}.deaths.json")


class WorkerDeaths:
    """The deaths of one run of a build. Call it with a task's marker and the cause."""

    def __init__(self) -> None:
        self.count = 0
        self._without_item: Counter[Path] = Counter()

    def __call__(self, marker: Path, cause: str) -> bool:
        """Write the death down. Whether to try the task again; raises DataError if there were too many."""
        item = _noted(marker)
        self.count += 1
        if self.count > MOST_DEATHS:
            raise DataError(
                f"{self.count} worker processes died in this build, the last one because of: {cause}; use fewer "
                "--workers or a machine with more memory; the same command resumes where this run stopped"
            )
        if item == _NONE:
            self._without_item[marker] += 1
            return self._without_item[marker] < DEADLY
        marker.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(deaths_file(marker), [*_deaths(marker), (item, cause)])
        return True


def _noted(marker: Path) -> int:
    """The item at which the task's last process was."""
    item = _noted_item(marker)
    _note(marker).unlink(missing_ok=True)
    return item


def _noted_item(marker: Path) -> int:
    try:
        (item,) = _ITEM.unpack(_note(marker).read_bytes())
    except (OSError, struct.error):
        return _NONE
    return int(item)


def _deaths(marker: Path) -> list[tuple[int, str]]:
    try:
        return [(int(item), str(cause)) for item, cause in read_sealed(deaths_file(marker))]
    except (OSError, ValueError, TypeError):  # none, or damaged: a flipped bit must not make a reject of another record
        return []


def _note(marker: Path) -> Path:
    return marker.with_name(f".{marker.stem}{NOTE}")
