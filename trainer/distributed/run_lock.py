"""One run at a time in a folder: two would write the same checkpoints and metrics.

Rule: the lock is the kernel's, on the file `lock`, and ends with the process that holds it, however that ends; the file
stays. It is a POSIX lock because loader workers, which are forked and may outlive a killed run by seconds, do not
inherit those, and network file systems know them. Where a file system knows no locks, nothing is kept apart.
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
def alone_in(out: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the folder, which is made if it is not there. Raises ConfigError on all ranks if another run has it."""
    handle, problem = _take(out) if ranks.is_first else (None, None)
    try:
        problem = ranks.gather(problem)[0]
        if problem is not None:
            raise ConfigError([problem])
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _take(out: Path) -> tuple[int | None, str | None]:
    """(the open lock file, what is wrong)"""
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
    except OSError:  # no locks here
        pass
    with suppress(OSError):  # whoever it is, the lock holds; a full disk is told of when something matters
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return handle, None
