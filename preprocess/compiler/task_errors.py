"""Errors of a task that a user can fix, and their text. Every engine reports them in the same words."""

from __future__ import annotations

import errno
import os

from dst import TemplateError, TokenizerError
from dst.common.os_errors import os_error_text
from preprocess.errors import ConfigError, DataError
from shards import ShardError

USERS_TO_MEND = (ConfigError, DataError, MemoryError, OSError, ShardError, TemplateError, TokenizerError)
"""They are not bugs of this project; the user gets one line."""


def failure_text(error: Exception) -> str:
    """The line that the user gets."""
    if isinstance(error, MemoryError):
        return "memory ran out; use fewer --workers"
    if not isinstance(error, OSError):
        return str(error)
    if error.errno is None:
        full = os.strerror(errno.ENOSPC) in str(error)  # as libraries in other languages report it
        return f"reading or writing: {error}" + ("; free some space and run it again" if full else "")
    is_remote = "://" in str(error.filename)  # its text says what to do
    return os_error_text(error, action="writing", next_step=None if is_remote else "run it again, or fix the folder")
