"""Where results are printed: the terminal as wide as it is, a file or a pipe wide enough that no table is cut."""

from __future__ import annotations

import sys

from rich.console import Console


def results() -> Console:
    """The console on stdout."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=True)
