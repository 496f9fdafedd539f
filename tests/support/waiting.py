"""Waiting in tests: for events, and never longer than LIMIT_S.

Rule: no test passes or fails by how fast it is. The limit only turns a hang into a failure, so it is far above what
anything here takes on a busy machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LIMIT_S = 600

_POLL_S = 0.01


def wait_until(look: Callable[[], T], *, limit_s: float = LIMIT_S) -> T:
    """What `look` returns, as soon as that is true. An exception of `look` ends the wait."""
    end = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < end, f"waited {limit_s} s in vain"
        time.sleep(_POLL_S)
    return found
