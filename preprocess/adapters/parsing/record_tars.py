"""The records of a WebDataset tar: the members with a common name up to the first dot are one sample.

Rule: a sample is read as preprocess.adapters.parsing.sample_records says. Memory holds one record, and the names and
places of the tar's members.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from preprocess.adapters.parsing.record_watch import watched_records
from preprocess.adapters.parsing.sample_records import MAX_TEXT_BYTES, sample_record
from preprocess.adapters.parsing.unreadable import UnreadableRecord
from preprocess.containers.tar import member_key, tar_members
from preprocess.errors import DataError

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)


class _Member(NamedTuple):
    name: str
    offset: int
    size: int
    is_file: bool


def tar_records(path: Path, start: int = 0, end: int | None = None, first_record: int = 0) -> Iterator[Any]:
    """The samples in the order of their first members. Raises DataError for a tar that is damaged or cut off.

    start, end: only those between these bytes, at each of which a sample begins or ends. first_record: the number of
    the first.
    """
    watch = watched_records(path)
    samples: dict[str, dict[str, _Member]] = {}
    try:
        for info in tar_members(path, start, end):
            name = member_key(info.name)
            sample, extension = sample_and_extension(name)
            # The last of two equal names counts, as when a tar is unpacked.
            samples.setdefault(sample, {})[extension] = _Member(name, info.offset_data, info.size, info.isreg())
        with path.open("rb") as file:
            for number, (sample, members) in enumerate(samples.items(), first_record):
                yield watch.reading(number) or _record(sample, members, file)
        watch.ended()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def sample_and_extension(name: str) -> tuple[str, str]:
    """The sample that a member belongs to, and what follows; "" if its name has no extension."""
    match = _NAME.fullmatch(name)
    return (match[1], match[2]) if match else (name, "")


def _record(sample: str, members: dict[str, _Member], file: Any) -> Any:
    if "" in members:
        return UnreadableRecord(
            reason="bad_value", detail=f"the member {sample} has no extension, so it is not part of a sample"
        )

    def read(member: _Member) -> bytes | UnreadableRecord:
        if not member.is_file or member.size > MAX_TEXT_BYTES:
            what = f"has {member.size} bytes; at most {MAX_TEXT_BYTES} are read" if member.is_file else "is a link"
            return UnreadableRecord(reason="bad_value", detail=f"{member.name} {what}")
        file.seek(member.offset)
        data: bytes = file.read(member.size)
        return data

    return sample_record(sample, members, lambda member: member.name, read)
