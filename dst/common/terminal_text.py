"""Text from data as a terminal may get it.

Rule: control characters of data (escape sequences, which can rewrite the screen or the title) are shown, never sent.
"""

from __future__ import annotations

import json
import re
from typing import Any

# C0 without tab and line feed, DEL, C1; and lone surrogates, which no terminal's encoding can write.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def visible(text: object) -> str:
    """The text with control characters written out, such as `\\x1b`."""
    return _CONTROL.sub(lambda found: _escape(found[0]), str(text))


def json_line(value: Any) -> str:
    """The value as one line of JSON; control characters are escaped as JSON does it."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
