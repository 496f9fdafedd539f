"""First stage of a build: run the adapter of one dataset and keep its output, so that it runs only once.

Rule: the key in the result's name covers everything that it depends on. A finished folder never changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from dst.common.extensions import ExtensionOrigin
from preprocess.adapters.base import AnnotationFile, FilePart, IdSet, Request, Tally
from preprocess.adapters.lookup import adapter_origin, read_records
from preprocess.adapters.parsing.splits import held_out_files
from preprocess.compiler.ingest_deaths import reading_text, surviving
from preprocess.compiler.input_digests import input_digests, stamp
from preprocess.compiler.sealed_json import read_sealed, write_sealed
from preprocess.compiler.spool import RECORDS, TABLE, reject_all, write_spool
from preprocess.compiler.unknown_names import check_fields, check_names, unused_names
from preprocess.compiler_version import COMPILER
from preprocess.conversation import Conversation, Records, Reject
from preprocess.errors import DataError
from preprocess.filters.record_rules import record_check
from preprocess.filters.rules import Filter
from preprocess.images.embedded import EmbeddedWriter, index_files
from shards.files import disk_named, partial_path, sync_folder

_DONE = "done.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestTask:
    """One dataset to read. cache: the build's cache folder; first: read only this many records.

    extension: the code of the adapter, if it is not dsvl's. rules: the dataset's filter. key: covers the adapter, its
    code, its options, the rules over records and the state of the annotation files at the start.
    """

    dataset: str
    adapter: str
    extension: ExtensionOrigin | None
    request: Request
    cache: Path
    first: int | None
    rules: Filter | None
    key: str

    @property
    def folder(self) -> Path:
        return self.cache / "ingest" / f"{self.dataset}-{self.key[:16]}"

    @property
    def marker(self) -> Path:
        """Names the files in which deaths of workers are noted."""
        return self.folder.with_name(f"{self.folder.name}.json")

    def item_text(self, item: int) -> str:
        return reading_text(self.request, item)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """The output of an adapter, in numbers. inputs: {"file", "size", "sha256"} of each annotation file.

    filtered: rule of the filter -> records that it drops, which are the rejects with the reason `filtered`.
    official_files: annotation file whose name says val or test -> its records that are official val or test.
    forms, ignored_keys: records of each form, and with each key that the adapter does not read. unused_names: settings
    of `fields`, `keys` and `roles` whose name is in no record.

    error: why a whole file cannot be used; then the other fields are meaningless.
    """

    records: int = 0
    conversations: int = 0
    rejects: Mapping[str, int] = field(default_factory=dict)
    filtered: Mapping[str, int] = field(default_factory=dict)
    inputs: Sequence[Mapping[str, Any]] = ()
    official_files: Mapping[str, int] = field(default_factory=dict)
    forms: Mapping[str, int] = field(default_factory=dict)
    ignored_keys: Mapping[str, int] = field(default_factory=dict)
    unused_names: Sequence[str] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the adapter made of some records, in numbers; the fields are those of Ingested, and unsorted."""

    records: int
    conversations: int
    rejects: Mapping[str, int]
    filtered: Mapping[str, int]
    official_files: Mapping[str, int]
    tally: Tally


def ingest_task(
    dataset: str,
    adapter: str,
    request: Request,
    cache: Path,
    first: int | None,
    extension: ExtensionOrigin | None = None,
    rules: Filter | None = None,
) -> IngestTask:
    """The task for one dataset. Raises DataError if an annotation file cannot be read."""
    return IngestTask(
        dataset=dataset,
        adapter=adapter,
        extension=extension,
        request=request,
        cache=cache,
        first=first,
        rules=rules,
        key=_key(adapter, request, first, extension, rules),
    )


def content_key(parts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def finished(task: IngestTask) -> Ingested | None:
    """The result of an earlier run of the same task, if there is one."""
    try:
        facts = read_sealed(task.folder / _DONE, sealed_files(task.folder), owner=task.folder.name)
        return Ingested(**facts) if (task.folder / RECORDS).is_file() else None
    except (OSError, ValueError, TypeError):
        return None


def run_ingest(task: IngestTask) -> Ingested:
    """Read the dataset into `task.folder`. If a whole file cannot be used, the result's `error` names it."""
    partial = partial_path(task.folder)
    try:
        partial.mkdir(parents=True)
        with disk_named(partial.parent), input_digests(task.request) as digests:
            reading = read_into(partial, task, task.marker)
            return complete(partial, task, reading, digests.result)
    except DataError as error:
        return failed(task, error)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_into(
    folder: Path, task: IngestTask, marker: Path, *, parts: tuple[AnnotationFile, ...] = (), ids: IdSet | None = None
) -> Reading:
    """Write what the adapter makes into a spool. marker: of the task. parts, ids: of the request. Raises DataError."""
    _check_code(task)
    tally = Tally() if ids is None else Tally(most=sys.maxsize)
    embedded = EmbeddedWriter(folder)
    request = replace(task.request, embedded=embedded, tally=tally, parts=parts, ids=ids)
    with ExitStack() as stack:
        stack.callback(embedded.release)
        stack.enter_context(surviving(request, marker, task.marker))
        official = Counter(dict.fromkeys(held_out_files(map(request.source_file, request.annotations)), 0))
        dropped: Counter[str] = Counter()
        records: Records = islice(read_records(task.adapter, request), task.first)
        if parts and task.extension is not None:
            records = _only_of(parts, request, records)
        if official:
            records = _counted(records, official)
        if task.rules is not None and task.rules.has_record_rules:
            records = filtered(records, task.rules, dropped)
        spool = write_spool(folder, task.dataset, records)
        embedded.close()
    return Reading(**spool, filtered=dict(dropped), official_files=dict(official), tally=tally)


def complete(
    folder: Path, task: IngestTask, reading: Reading, inputs: Callable[[], Sequence[Mapping[str, Any]]]
) -> Ingested:
    """Make the folder, which has the whole spool, the task's result.

    inputs: as in Ingested. Raises DataError if a setting names what no record has, if there is no record, or if a file
    has changed since the task was made.
    """
    request, tally = task.request, reading.tally
    check_fields(tally, request.filter_fields)
    if reading.records and task.first is None:
        check_names(tally, request.keys)
    ingested = Ingested(
        records=reading.records,
        conversations=reading.conversations,
        rejects=dict(sorted(reading.rejects.items())),
        filtered=dict(sorted(reading.filtered.items())),
        inputs=inputs(),
        official_files=dict(reading.official_files),
        forms=dict(tally.forms),
        ignored_keys=dict(tally.ignored_keys),
        unused_names=unused_names(tally, request.keys, request.roles),
    )
    if not ingested.records:
        raise DataError(
            f"{', '.join(map(str, request.annotations))}: no records in it; remove the dataset from the blend"
        )
    if _key(task.adapter, request, task.first, task.extension, task.rules) != task.key:
        raise DataError("an annotation file changed while it was read; run the same command again")
    write_sealed(folder / _DONE, asdict(ingested), sealed_files(folder), owner=task.folder.name)
    shutil.rmtree(task.folder, ignore_errors=True)
    os.replace(folder, task.folder)
    sync_folder(task.folder.parent)
    return ingested


def sealed_files(folder: Path) -> list[Path]:
    """Files of a spool whose parts have no digests of their own, or do not say whose they are."""
    return [folder / TABLE, folder / "rejects.jsonl", *index_files(folder)]


def failed(task: IngestTask, error: DataError) -> Ingested:
    return Ingested(error=f"dataset {task.dataset}: {error}")


def filtered(records: Records, rules: Filter, dropped: Counter[str]) -> Iterator[Conversation | Reject]:
    """The records that keep the rules over texts and fields, and a reject for each other one, counted by its rule.

    Conversations come out without their fields: only rules read them, and a rule must not change the hash by which a
    conversation without images gets its side of the split.
    """
    check = record_check(rules)
    for item in records:
        if not isinstance(item, Conversation):
            yield item
        elif (broken := check(item)) is None:
            yield replace(item, fields={}) if item.fields else item
        else:
            dropped[broken.rule] += len(item.sources)
            yield from reject_all(item, "filtered", str(broken))


def _key(
    adapter: str, request: Request, first: int | None, extension: ExtensionOrigin | None, rules: Filter | None
) -> str:
    parts: dict[str, Any] = {
        "compiler": COMPILER,
        "adapter": adapter,
        "options": dict(request.options),
        "keys": dict(request.keys),
        "roles": dict(request.roles),
        "filter_fields": request.filter_fields,
        "seed": request.seed,
        "max_images": request.max_images,
        "first": first,
        "annotations": [[request.source_file(path), *stamp(path)] for path in request.annotations],
        "images": [[path.name, path.is_dir()] for path in request.images],
    }
    if request.frames:
        parts["frames"] = request.frames
    if extension is not None:
        parts["extension"] = asdict(extension)
    if rules is not None and rules.has_record_rules:
        parts["filter"] = rules.record_key()
    return content_key(parts)


def _check_code(task: IngestTask) -> None:
    """Raises DataError if this process would run another version of an adapter than the one that the key covers."""
    if task.extension is None:
        return
    here = adapter_origin(task.adapter)
    if here != task.extension:
        other = here.code if here else "an adapter of dsvl"
        raise DataError(
            f"adapter {task.adapter}: this worker has {other}, the build began with {task.extension.code}; "
            "install the same version on every node, and do not edit it during a build"
        )


def _only_of(parts: tuple[AnnotationFile, ...], request: Request, records: Records) -> Iterator[Conversation | Reject]:
    """The records as they are. Raises DataError if an adapter of another package reads others than it was asked for."""
    files = {request.source_file(part.path if isinstance(part, FilePart) else part) for part in parts}
    count = 0
    for item in records:
        source = item.sources[0] if isinstance(item, Conversation) else item.source
        if source.file not in files:
            raise DataError(f"the adapter reads {source.file}, which is not in request.files")
        count += 1
        yield item
    if count < sum(part.count for part in parts if isinstance(part, FilePart)):
        raise DataError("the adapter reads fewer records than there are in request.files")


def _counted(records: Records, official: Counter[str]) -> Iterator[Conversation | Reject]:
    """The records as they are; counts, for the files in `official`, those that are official val or test."""
    for item in records:
        if isinstance(item, Conversation) and item.official_split in ("val", "test"):
            official.update(source.file for source in item.sources if source.file in official)
        yield item
