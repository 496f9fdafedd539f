"""How results are printed: as wide as the terminal is, and with nothing in them that would command it.

Rule: every text that may hold a user's data goes through dst.common.terminal_text, a table's cells through `cell`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from dst.common.terminal_text import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def cell(text: object, style: str = "") -> Text:
    """A text to print as it stands: no markup is read in it, no control character is sent."""
    from rich.text import Text

    return Text(visible(text), style=style)


def results() -> Console:
    """The console on stdout. A file or a pipe is wide enough that no table is cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=True)
