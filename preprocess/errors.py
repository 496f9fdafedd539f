"""Errors that end a command: what a user can fix, in one line each, without a traceback."""

from dst.errors import ConfigError

__all__ = ["ConfigError", "DataError"]


class DataError(Exception):
    """A whole file or build is unusable (a record that is not becomes a reject instead); exit code 1."""
