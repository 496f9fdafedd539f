"""Where a record stands: what each adapter carries from its loop over records to the conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.identities import Identities
from preprocess.conversation import Source

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """own: the record's id as text, or None. number: its number in the file, from 0. label: the file's."""

    request: Request
    identities: Identities
    label: str
    own: str | None
    number: int
    source: Source

    def claim(self) -> str:
        """The conversation's id. Raises RejectError if it is taken; claim it last, for a record that is sound."""
        return self.identities.claim(self.label, self.own, self.number)


def place_of(identities: Identities, path: Path, own: str | None, number: int) -> Place:
    return Place(
        request=identities.request,
        identities=identities,
        label=identities.label(path),
        own=own,
        number=number,
        source=Source(file=identities.file(path), record=str(number) if own is None else own),
    )


def places(
    identities: Identities, path: Path, records: Iterable[T], own_of: Callable[[T], str | None]
) -> Iterator[tuple[Place, T]]:
    """The records of a file, each with its place. own_of: a record's own id, if it has one that can serve."""
    for number, record in enumerate(records):
        yield place_of(identities, path, own_of(record), number), record
