"""What the manifest says of shards: paths, sizes, digests and counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints, overload

from shards.typed_json import Count, from_json


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardInfo:
    """A finished shard as the manifest pins it. Paths are relative to the build folder; sizes in bytes."""

    path: str
    size: Count
    sha256: str
    index: str
    index_size: Count
    index_sha256: str
    samples: Count
    images: Count
    text_tokens: Count
    trained_tokens: Count


_TYPES: Mapping[str, type] = get_type_hints(ShardInfo)


class ShardList(Sequence[ShardInfo]):
    """The shards of a dataset's split, in order.

    A build may have ten thousand. They are kept and checked as columns, and a ShardInfo is made when it is asked for,
    so that a build opens in milliseconds.
    """

    def __init__(self, shards: Iterable[ShardInfo] = ()) -> None:
        every = tuple(shards)
        self._columns = {name: [getattr(info, name) for info in every] for name in _TYPES}

    @classmethod
    def from_json(cls, value: object, path: str) -> ShardList:
        """From a list of JSON objects. Raises FieldError for the first field that is missing or of another type."""
        columns = _columns(value)
        if columns is None:
            return cls(from_json(tuple[ShardInfo, ...], value, path))
        shards = cls()
        shards._columns = columns
        return shards

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, number: int) -> ShardInfo: ...
    @overload
    def __getitem__(self, number: slice) -> ShardList: ...
    def __getitem__(self, number: int | slice) -> ShardInfo | ShardList:
        if isinstance(number, slice):
            return ShardList(self[index] for index in range(*number.indices(len(self))))
        return ShardInfo(**{name: column[number] for name, column in self._columns.items()})

    @property
    def samples(self) -> list[int]:
        """Samples of each shard."""
        return self._columns["samples"]

    @property
    def paths(self) -> list[str]:
        """The tars, then their indexes."""
        return self._columns["path"] + self._columns["index"]


def _columns(value: object) -> dict[str, list[Any]] | None:
    """Each field of all shards, or None if any of them has to be looked at alone."""
    if not isinstance(value, list):
        return None
    try:
        columns = {name: [entry[name] for entry in value] for name in _TYPES}
    except (KeyError, TypeError):
        return None
    sound = all(
        {*map(type, column)} <= {_TYPES[name]} and (_TYPES[name] is str or min(column, default=0) >= 0)
        for name, column in columns.items()
    )
    return columns if sound else None
