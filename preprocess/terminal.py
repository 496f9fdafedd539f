"""How results are printed: in the width of the terminal, without control characters from data.

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
    """A text to print unchanged: markup in it is not interpreted, control characters are escaped."""
    from rich.text import Text

    return Text(visible(text), style=style)


def results() -> Console:
    """The console on stdout; in a file or a pipe it is 160 columns wide, so that no table is cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=True)
