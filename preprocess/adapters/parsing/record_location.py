"""Where a record is: an adapter passes this from its loop over records to the conversation that it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from preprocess.adapters.base import AnnotationFile, FilePart, Request
from preprocess.adapters.parsing.identities import Identities
from preprocess.conversation import RecordSource
from preprocess.fast_record import fast_record

T = TypeVar("T")


@fast_record
class RecordLocation:
    """own: the record's id as text, or None. number: its index in the file. label: the file's, in ids."""

    request: Request
    identities: Identities
    label: str
    own: str | None
    number: int
    source: RecordSource

    def claim(self) -> str:
        """The conversation's id. Raises RejectError if it is taken. Call it last, for a valid record."""
        return self.identities.claim(self.label, self.own, self.number)


def location_of(identities: Identities, path: Path, own: str | None, number: int) -> RecordLocation:
    return RecordLocation(
        request=identities.request,
        identities=identities,
        label=identities.label(path),
        own=own,
        number=number,
        source=RecordSource(file=identities.file(path), record=str(number) if own is None else own),
    )


def located_records(
    identities: Identities, file: AnnotationFile, records: Iterable[T], own_of: Callable[[T], str | None]
) -> Iterator[tuple[RecordLocation, T]]:
    """The records of a file, each with its location. own_of: a record's own id, None if it has no usable one."""
    path, first = (file.path, file.first_record) if isinstance(file, FilePart) else (file, 0)
    request, label, name = identities.request, identities.label(path), identities.file(path)
    for number, record in enumerate(records, first):
        own = own_of(record)
        source = RecordSource(file=name, record=str(number) if own is None else own)
        yield (
            RecordLocation(request=request, identities=identities, label=label, own=own, number=number, source=source),
            record,
        )
