"""What the guard and the endpoints know of a request: whether it has the key, and what its line of the log says."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.types import Scope

NOTES = "dsvl.notes"
"""The name of a request's notes in its ASGI scope"""


@dataclass(slots=True, kw_only=True)
class RequestNotes:
    """Of one request. What endpoints write here is added to its line of the log."""

    has_key: bool
    """Whether it came with the server's key; True if the server has none"""
    numbers: dict[str, int] = field(default_factory=dict)
    status: int | None = None
    """Instead of the one that was sent: for a client that is gone, or a stream that failed"""
    bug: Exception | None = None
    """What nobody foresaw; the log gets its traceback"""


def notes_of(scope: Scope) -> RequestNotes:
    notes = scope[NOTES]
    assert isinstance(notes, RequestNotes)
    return notes
