"""What the manifest says of shards: paths, sizes, digests and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints, overload

from shards.typed_json import LARGEST, OPTIONAL, Count, field_error, from_json


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
    branches: Annotated[tuple[Count, ...] | None, OPTIONAL] = None
    """How many samples have 1, 2, 3, ... branches, in this order in the shard; None if none has more than one"""

    tiles: Annotated[Count | None, OPTIONAL] = None
    """Of all its images; None in builds without tiles"""

    @property
    def by_branches(self) -> tuple[int, ...]:
        """`branches`, with (samples,) for None."""
        return (self.samples,) if self.branches is None else self.branches

    def sizes(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """(path, bytes) of its two files."""
        return (self.path, self.size), (self.index, self.index_size)

    def digests(self) -> dict[str, str]:
        """path -> SHA-256 of its two files."""
        return {self.path: self.sha256, self.index: self.index_sha256}


_BRANCHES, _TILES = "branches", "tiles"
_OPTIONAL = (_BRANCHES, _TILES)
_TYPES: Mapping[str, type] = {name: kind for name, kind in get_type_hints(ShardInfo).items() if name not in _OPTIONAL}


class ShardList(Sequence[ShardInfo]):
    """The shards of a dataset's split, in order.

    A build may have ten thousand. They are kept and checked as columns, and a ShardInfo is made when it is asked for,
    so that a build opens in milliseconds.
    """

    def __init__(self, shards: Iterable[ShardInfo] = ()) -> None:
        every = tuple(shards)
        self._columns = {name: [getattr(info, name) for info in every] for name in (*_TYPES, *_OPTIONAL)}

    @classmethod
    def from_json(cls, value: object, path: str) -> ShardList:
        """From a list of JSON objects. Raises FieldError for the first field that is missing or of another type."""
        columns = _columns(value)
        if columns is None:
            infos = from_json(tuple[ShardInfo, ...], value, path)
            for number, info in enumerate(infos):
                _check_branches(info, f"{path}.{number}.{_BRANCHES}")
            return cls(infos)
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
    def sizes(self) -> list[int]:
        """Bytes of each shard with its index."""
        return [size + index for size, index in zip(self._columns["size"], self._columns["index_size"], strict=True)]

    @property
    def images(self) -> list[int]:
        return self._columns["images"]

    @property
    def text_tokens(self) -> list[int]:
        return self._columns["text_tokens"]

    @property
    def trained_tokens(self) -> list[int]:
        return self._columns["trained_tokens"]

    @property
    def tar_sizes(self) -> list[int]:
        """Bytes of each tar."""
        return self._columns["size"]

    @property
    def by_branches(self) -> list[tuple[int, ...]]:
        """Of each shard, how many samples have 1, 2, 3, ... branches, in this order."""
        pairs = zip(self.samples, self._columns[_BRANCHES], strict=True)
        return [(samples,) if branches is None else branches for samples, branches in pairs]

    @property
    def by_records(self) -> dict[int, int]:
        """Number of records of a sample -> samples of all shards that have so many, if there are any."""
        sizes: Counter[int] = Counter()
        for by_branches in self.by_branches:
            sizes.update(dict(enumerate(by_branches, start=1)))
        return {count: samples for count, samples in sorted(sizes.items()) if samples}

    @property
    def records(self) -> int:
        """Samples of all shards, each branch counted as one."""
        return sum(count * samples for count, samples in self.by_records.items())

    @property
    def has_branches(self) -> bool:
        return any(branches is not None for branches in self._columns[_BRANCHES])

    @property
    def has_tiles(self) -> bool:
        return any(tiles is not None for tiles in self._columns[_TILES])

    @property
    def paths(self) -> list[str]:
        """The tars, then their indexes."""
        return self._columns["path"] + self._columns["index"]

    @property
    def digests(self) -> list[str]:
        """SHA-256 of the tars, then of their indexes."""
        return self._columns["sha256"] + self._columns["index_sha256"]


def _check_branches(info: ShardInfo, path: str) -> None:
    counts = info.branches
    if counts is not None and not (len(counts) > 1 and counts[-1] and sum(counts) == info.samples):
        raise field_error(path, list(counts), f"numbers of samples with 1, 2, ... branches, {info.samples} together")


def _columns(value: object) -> dict[str, list[Any]] | None:
    """Each field of all shards, or None if any of them has to be looked at alone."""
    if not isinstance(value, list) or any(isinstance(entry, dict) and _BRANCHES in entry for entry in value):
        return None
    tiled = bool(value) and isinstance(value[0], dict) and _TILES in value[0]
    types = {**_TYPES, _TILES: int} if tiled else _TYPES
    try:
        columns = {name: [entry[name] for entry in value] for name in types}
        if not tiled and any(_TILES in entry for entry in value):
            return None
    except (KeyError, TypeError):
        return None
    sound = all(
        {*map(type, column)} <= {types[name]}
        and (types[name] is str or (min(column, default=0) >= 0 and max(column, default=0) <= LARGEST))
        for name, column in columns.items()
    )
    return {**dict.fromkeys(_OPTIONAL, [None] * len(value)), **columns} if sound else None
