"""The line for an OSError that reached the user: where, what, and what to do about it."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

_NEXT_STEPS: Mapping[int, str] = {
    errno.EISDIR: "a file is expected there: move the folder away",
    errno.ENOTDIR: "a folder is expected there: move the file away",
    errno.ELOOP: "a file is expected there: remove the link",
    errno.EACCES: "let this user read and write there, or name another folder",
    errno.EPERM: "let this user read and write there, or name another folder",
    errno.EROFS: "make the file system writable, or name another folder",
    errno.ENOSPC: "free some space, and run it again",
    errno.EDQUOT: "free some space, and run it again",
}


def os_error_text(error: OSError, *, action: str = "reading or writing", next_step: str | None = None) -> str:
    """action: what was done, for an error that names no file. next_step: for an error that says none by its number.

    A rename names two files: the second is the one that the user knows.
    """
    name = error.filename2 or error.filename
    where = action if name is None else os.fsdecode(name) if isinstance(name, str | bytes) else str(name)
    step = _NEXT_STEPS.get(error.errno or 0, next_step)
    return f"{where}: {error.strerror or error}" + (f"; {step}" if step else "")
