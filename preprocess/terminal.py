"""How results are printed: as wide as the terminal is, and with nothing in them that would command it.

Rule: control characters of data (escape sequences, which can rewrite the screen or the title) are shown, never sent. So
every text that may hold a user's data goes through `visible`, a table's cells through `cell`, JSON through `json_line`.
"""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# C0 without tab and line feed, DEL, C1; and lone surrogates, which no terminal's encoding can write.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def visible(text: object) -> str:
    """The text with control characters written out, such as `\\x1b`."""
    return _CONTROL.sub(lambda found: _escape(found[0]), str(text))


def cell(text: object, style: str = "") -> Text:
    """A text to print as it stands: no markup is read in it, no control character is sent."""
    from rich.text import Text

    return Text(visible(text), style=style)


def json_line(value: Any) -> str:
    """The value as one line of JSON; control characters are escaped as JSON does it."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def results() -> Console:
    """The console on stdout. A file or a pipe is wide enough that no table is cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=True)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
