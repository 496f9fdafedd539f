"""The state of a virtual environment that setup_venv.py makes, and the lock that one run at a time holds.

Both are files in the environment. The state says which step was begun; "complete" is written after everything else, so
any other step means that a run was stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

STATE = "setup.json"
NEW_STATE = "setup.json.new"
LOCK = "setup.lock"
OWN = {STATE, NEW_STATE, LOCK}


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What an environment is made from; it can be used for what has the same, and no more extras."""

    step: str  # "venv", "packages" or "complete"
    folder: str  # scripts in bin/ name it, so an environment that was moved does not work
    python: str
    base: str
    project: str
    pyproject: str
    lock: str
    extras: tuple[str, ...]

    def holds(self, target: State) -> bool:
        return set(self.extras) >= set(target.extras) and replace(self, extras=target.extras) == target


@contextmanager
def exclusive(venv: Path) -> Iterator[int]:
    """The descriptor of the lock, which is held until every process that has the descriptor ends."""
    venv.mkdir(parents=True, exist_ok=True)
    with (venv / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that sets up {venv}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def read_state(venv: Path) -> State | None:
    try:
        fields = json.loads((venv / STATE).read_text(encoding="utf-8"))
        return State(**{**fields, "extras": tuple(fields["extras"])})
    except (FileNotFoundError, NotADirectoryError, KeyError, TypeError, ValueError):
        return None


def write_state(venv: Path, state: State) -> None:
    new = venv / NEW_STATE
    with new.open("w", encoding="utf-8") as file:
        json.dump(asdict(state), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    new.replace(venv / STATE)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
