"""Tasks for engines of the compiler, which succeed, fail, or end their process.

Worker processes import this module, so it imports little.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from preprocess.errors import DataError


def square(task: int) -> tuple[int, int]:
    return task, task * task


def process_of(task: object) -> int:
    return os.getpid()


def wait_for_ever_from_one_on(task: int) -> int:
    if task:
        threading.Event().wait()
    return os.getpid()


def press_ctrl_c(task: int) -> int:
    os.kill(os.getpid(), signal.SIGINT)
    return os.getpid()


def kill_yourself_at_two(task: int) -> int:
    if task == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def leave_at_two(task: int) -> int:
    if task == 2:
        os._exit(3)
    return task


def refuse(task: str) -> None:
    raise DataError(f"{task}: cannot be used")


def disk_full(task: str) -> None:
    raise OSError(28, "No space left on device", task)


def full_without_name(task: str) -> None:
    raise OSError(28, "No space left on device")


def full_in_rust(task: str) -> None:
    raise OSError("No space left on device (os error 28)")


def bare_os_error(task: str) -> None:
    raise OSError(f"{task} is truncated")


def end_of_file(task: str) -> None:
    raise EOFError(task)


def mistake(task: str) -> None:
    raise KeyError(task)


def unpicklable(task: int) -> object:
    return lambda: task


def big(task: int) -> bytes:
    return bytes(task)


def wait_for_a_file(task: Path) -> int:
    """Write this process's id next to a file, and wait until the file is there."""
    task.with_suffix(f".{os.getpid()}.pid").touch()
    while not task.exists():
        time.sleep(0.02)
    return os.getpid()


def end_worker(task: object) -> None:
    os._exit(3)


def look_around(task: Path) -> tuple[str, list[str]]:
    """Where a path of the build folder is here, and what is below it; leaves a file and a link to another there."""
    below = sorted(path.relative_to(task).as_posix() for path in task.rglob("*") if path.is_file())
    (task / "out").mkdir(exist_ok=True)
    (task / "out/result.txt").write_text("made on a node", encoding="utf-8")
    return str(task), below
