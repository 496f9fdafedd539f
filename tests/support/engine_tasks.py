"""Tasks for engines of the compiler, which succeed, fail, or end their process.

Worker processes import this module, so it imports little.
"""

from __future__ import annotations

import os
import signal
import threading

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
