"""The contract between adapters and the compiler.

An adapter is a function: `read(request)` reads a dataset's annotation files and yields a conversation or a reject for
every record, always in the same order. It opens no image; it names them, and the image store reads them later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from preprocess.conversation import SCALARS, Image, Records, Role, embedded_name

MAX_NAMES = 100
PartForm = Literal["array", "lines", "Parquet", "an Arrow file", "a tar"]


class ImageKeeper(Protocol):
    """Where an adapter puts the images that are inside records as text."""

    def keep(self, data: bytes) -> Image:
        """The reference to an image with these bytes."""


class NamesOnly:
    """For looks at records: names images, and keeps none."""

    def keep(self, data: bytes) -> Image:
        return Image(name=embedded_name(data))


class IdSet(Protocol):
    """The ids of a dataset's conversations that are taken, as 64-bit hashes, and by which record of its file."""

    def __contains__(self, digest: int) -> bool: ...

    def add(self, digest: int, record: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePart:
    """Some neighbouring records of an annotation file.

    form: how the file holds its records. start, end: bytes of a file of text; of Parquet the numbers of row groups, of
    Arrow those of record batches, of a tar those of samples. first_record: the number of the first record in the file,
    first_line: of its first line, both from 0. count: the records.
    """

    path: Path
    form: PartForm
    start: int
    end: int
    first_record: int
    first_line: int
    count: int


AnnotationFile = Path | FilePart
"""A whole file, or a part of one"""


@dataclass(slots=True)
class Tally:
    """What an adapter found in a dataset, in records: their forms, and the keys that it ignored.

    keys_found, roles_found: names of the blend that are in some record. For a filter: which of its fields some record
    has, and the keys of the first records that one could be. Names come from data, so only the first `most` of each
    kind are counted.
    """

    most: int = MAX_NAMES
    forms: Counter[str] = field(default_factory=Counter)
    ignored_keys: Counter[str] = field(default_factory=Counter)
    keys_found: set[str] = field(default_factory=set)
    roles_found: set[str] = field(default_factory=set)
    fields_found: set[str] = field(default_factory=set)
    possible_fields: dict[str, None] = field(default_factory=dict)

    def add(self, later: Tally) -> None:
        """Count as if the records of `later`, which counted names without a limit, had come here."""
        self.forms.update(later.forms)
        for name, records in later.ignored_keys.items():
            self.ignored_key(name, records)
        self.keys_found |= later.keys_found
        self.roles_found |= later.roles_found
        self.fields_found |= later.fields_found
        for name in later.possible_fields:
            self.possible_field(name)

    def form(self, name: str) -> None:
        self.forms[name] += 1

    def ignored_key(self, name: str, records: int = 1) -> None:
        if name in self.ignored_keys or len(self.ignored_keys) < self.most:
            self.ignored_keys[name] += records

    def keys(self, record: Mapping[str, Any], wanted: Mapping[str, str | None]) -> None:
        """Look for the blend's names of keys in a record or a turn. As soon as all were found, this does nothing."""
        if len(self.keys_found) < len(wanted):
            self.keys_found.update(name for name in wanted if name in record)

    def fields(self, record: Mapping[str, Any], wanted: Sequence[str]) -> None:
        """Look for fields of a filter in a record. As soon as all were found once, this does nothing."""
        if len(self.fields_found) == len(wanted):
            return
        self.fields_found.update(name for name in wanted if name in record)
        for name, value in record.items():
            if type(value) in SCALARS:
                self.possible_field(name)

    def possible_field(self, name: str) -> None:
        if len(self.possible_fields) < self.most:
            self.possible_fields[name] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The input of an adapter: one dataset of the blend.

    root: the dataset's folder. annotations: sorted files. images: the paths of the image stores (folders or archives);
    `Image.store` is an index into them. options: the adapter's own options, checked and complete. max_images:
    limits.max_images. keys: the dataset's own name of a key -> the name that the adapter reads, or None to ignore it;
    in records and in their messages. roles: the dataset's own roles. filter_fields: the keys that its filter reads.
    frames: N of the blend's `frames: even:N`, or 0: then a video cannot be read. tally: counts what the adapter found.
    embedded: keeps the images that are inside records as text. parts: if a task reads some of the records only, these,
    in order; an adapter with `independent_records` reads `files`, which are the parts or else all annotations. ids:
    where ids are claimed, if a task needs to know; else each reading begins with none.
    """

    root: Path
    annotations: tuple[Path, ...]
    images: tuple[Path, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    max_images: int = 8
    keys: Mapping[str, str | None] = field(default_factory=dict)
    roles: Mapping[str, Role] = field(default_factory=dict)
    filter_fields: tuple[str, ...] = ()
    frames: int = 0
    embedded: ImageKeeper = field(default_factory=NamesOnly, compare=False)
    tally: Tally = field(default_factory=Tally, compare=False)
    parts: tuple[AnnotationFile, ...] = ()
    ids: IdSet | None = field(default=None, compare=False)

    @property
    def files(self) -> tuple[AnnotationFile, ...]:
        return self.parts or self.annotations

    def source_file(self, path: Path) -> str:
        """The path as samples and reject files show it: relative to the root if it is below it, else the file name."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A setting of one adapter: its default, its values, and when to change it."""

    default: Any
    help: str
    choices: tuple[Any, ...] = ()
    """Allowed values; empty: any value of the default's type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where a dataset's files are: glob patterns below the root; every match is used, sorted within a pattern."""

    annotations: tuple[str, ...]
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A row of ADAPTERS.

    annotations, images: glob patterns below the root, unless the blend sets others; every match is used, sorted within
    a pattern. joins: every annotation pattern must match, since the files are joined. alternatives: the annotation
    patterns are alternatives, so usually some match nothing. other_layouts: other places where people have the same
    files; the first that is there is used if nothing matches `annotations`. not_annotations: names that the adapter's
    own patterns never match. embedded: a Parquet, Arrow or tar file of annotations is also an image store, listed or
    not. layout, where, licence: texts for `dsvl-prep adapters`. keys: the names of keys that it reads in records and
    messages (preprocess.adapters.parsing.keys); without any, the blend's `fields` and `keys` do not apply to it.
    independent_records: `read` walks `request.files`, yields one item for each record, and makes it of that record
    alone, with an id of RecordLocation.claim; then large files are read in parts, by several workers at once.
    """

    read: Callable[[Request], Records]
    annotations: tuple[str, ...]
    images: tuple[str, ...]
    layout: str
    where: str
    licence: str
    joins: bool = False
    alternatives: bool = False
    other_layouts: tuple[Layout, ...] = ()
    not_annotations: tuple[str, ...] = ()
    embedded: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    independent_records: bool = False

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """All layouts, the adapter's own first."""
        return (Layout(annotations=self.annotations, images=self.images), *self.other_layouts)
