"""What endpoints know of a request for its line of the log."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.types import Scope

NOTES = "dsvl.notes"
"""The name of a request's notes in its ASGI scope"""


@dataclass(slots=True, kw_only=True)
class RequestNotes:
    """What endpoints add to the line of the log."""

    numbers: dict[str, int] = field(default_factory=dict)
    status: int | None = None
    """Instead of the one that was sent: for a client that is gone, or a stream that failed"""
    bug: Exception | None = None
    """What nobody foresaw; the log gets its traceback"""


def notes_of(scope: Scope) -> RequestNotes:
    notes = scope[NOTES]
    assert isinstance(notes, RequestNotes)
    return notes
