"""A record that cannot be parsed, in the place of one that can."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableRecord:
    """A record that could not be parsed; `reason` is a name of REASONS. `object_of` turns it into a reject.

    id: the record's, where its container knows it.
    """

    reason: str
    detail: str
    id: str | None = None
