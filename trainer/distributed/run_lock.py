"""One run at a time in a folder: two would write the same checkpoints and metrics.

Rule: the kernel holds the lock, on the file `lock`, and releases it when the process ends, however it ends; the file
stays. It is a POSIX lock: forked loader workers, which may outlive a killed run by seconds, do not inherit it, and
network file systems support it. On a file system without locks two runs are not kept apart.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dst.errors import ConfigError
from trainer.distributed.ranks import Ranks

LOCK = "lock"


@contextmanager
def run_lock(out: Path, ranks: Ranks) -> Iterator[None]:
    """Lock a run's folder, which is created if needed. Raises ConfigError on all ranks if another run has locked it."""
    handle, problem = _acquire(out) if ranks.is_first else (None, None)
    try:
        problem = ranks.gather(problem)[0]
        if problem is not None:
            raise ConfigError([problem])
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _acquire(out: Path) -> tuple[int | None, str | None]:
    """(the open lock file, the problem); one of them is None"""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        return None, f"out: {out} cannot be written: {error.strerror}; choose another folder"
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
        os.close(handle)
        return None, f"out: {holder} is training in {out}; wait for it, stop it, or choose another `out`"
    except OSError:  # the file system has no locks
        pass
    with suppress(OSError):  # the lock holds without this note; a full disk is reported when a checkpoint is written
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return handle, None
