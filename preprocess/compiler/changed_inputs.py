"""Inputs that are not what they were: images that change during a build, and files with other bytes but the same time.

A build knows a file by its size and mtime. Two things escape that. A file may change after the build looked at it and
before the manifest is written: the end of a build looks again. And a file may be written so that size and mtime stay
the same, by a copy that keeps times or by a failing disk: `--check-inputs` reads every byte and compares digests.

Rule: what a changed file has decided is forgotten in the cache, so that no later build takes it for finished.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash

from preprocess.adapters.base import Request
from preprocess.blend.resolve import Prepared, request_of
from preprocess.compiler.fingerprints import FOLDER as FINGERPRINTS
from preprocess.compiler.frames import FOLDER as FRAMES
from preprocess.compiler.image_digests import file_hash, read_digests
from preprocess.compiler.image_indexes import list_folders
from preprocess.compiler.image_states import image_states
from preprocess.compiler.input_digests import input_digests
from preprocess.compiler.opened import open_dataset
from preprocess.compiler.planned import Planned
from preprocess.compiler.task import CompileTask
from preprocess.compiler.task_runner import TaskRunner
from preprocess.conversation import is_embedded
from preprocess.errors import DataError, RejectError
from preprocess.images.stores import current_files

_SHOWN_NAMES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckTask:
    """A finished task whose images are read again. digests: the file of what they were."""

    task: CompileTask
    digests: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationsTask:
    """The annotation files of a dataset. sha256: file -> what it was."""

    request: Request
    sha256: Mapping[str, str]


def check_unchanged(planned: Planned, run: TaskRunner) -> None:
    """Look at the images again, after tasks read them. Raises DataError, and forgets tasks, if some changed since."""
    stage = planned.stage
    list_folders((path for stores in stage.stores.values() for path in stores), stage.cache, run)
    now = image_states(stage.spools, stage.stores, stage.cache, run)
    problems = []
    for name, spool in stage.spools.items():
        positions = np.flatnonzero(now[name] != stage.states[name])
        if not len(positions):
            continue
        rows = np.zeros(len(spool), np.bool_)
        rows[np.searchsorted(np.cumsum(spool.counts("images")), positions, "right")] = True
        for task in planned.tasks:
            if task.context.dataset == name and rows[task.rows].any():
                forget(task)
        names = list(dict.fromkeys(image.name for image in spool.images_at(positions)))
        problems.append(f"dataset {name}: {len(names):,} images changed during the build: {named(names)}")
    if problems:
        step = "run the same command again when they are complete; only shards with these images are compiled again"
        raise DataError("\n".join([*problems, step]))


def forget_changed(
    prepared: Prepared, planned: Planned, done: Sequence[CompileTask], run: TaskRunner
) -> tuple[str, ...]:
    """Read all inputs; remove from the cache what those decided that have other bytes now. Returns lines for people.

    done: the tasks that are not to be compiled.
    """
    annotations = run.every_time("checking annotations", check_annotations, list(_annotations(prepared, planned)))
    checks = [CheckTask(task=task, digests=task.digests) for task in done]
    images = run.every_time("checking images", check_images, checks, weight=lambda check: len(check.task.rows))
    by_dataset: dict[str, dict[str, None]] = {dataset.name: {} for dataset in prepared.blend.datasets}
    for files, changed in zip(by_dataset.values(), annotations, strict=True):
        files.update(dict.fromkeys(changed))
    read_again = {name for name, files in by_dataset.items() if files}
    for task, names in zip(done, images, strict=True):
        by_dataset[task.context.dataset].update(dict.fromkeys(names or ()))
        if names is None or names:
            forget(task)
    lines = []
    for name, files in by_dataset.items():
        if files:
            lines.append(f"dataset {name}: other bytes with the same size and time: {named(list(files))}")
            is_copy_damaged = any(map(is_embedded, files))  # ingest keeps the images that are inside records
            _forget_records(planned, name, with_ingest=name in read_again or is_copy_damaged)
    if lines:
        for part in (FINGERPRINTS, FRAMES):
            shutil.rmtree(planned.stage.cache / part, ignore_errors=True)
    if unknown := images.count(None):
        lines.append(f"{unknown:,} shards are of a version that kept no digests of images, and are compiled again")
    return tuple(lines)


def check_annotations(task: AnnotationsTask) -> list[str]:
    """The files with another digest."""
    with input_digests(task.request) as digests:
        return [entry["file"] for entry in digests.result() if task.sha256.get(entry["file"]) != entry["sha256"]]


def check_images(check: CheckTask) -> list[str] | None:
    """The names of the images with another digest; None if the task kept none."""
    known = read_digests(check.digests)
    if known is None:
        return None
    spool, stores = open_dataset(check.task.context.spool, check.task.context.stores, check.task.context.cache)
    waiting, changed = dict(known), []
    for row in check.task.rows.tolist():
        for image in spool[row].images:
            digest = waiting.pop(file_hash(image), None)
            if digest is None:
                continue
            try:
                data = stores.read(replace(image, frame=None))
            except (RejectError, DataError):  # of a file, and of a copy of it in the cache
                changed.append(image.name)
                continue
            if xxhash.xxh3_64_intdigest(data) != digest:
                changed.append(image.name)
    return changed


def forget_indexes(prepared: Prepared, cache: Path) -> None:
    """Let archives be indexed again: an index, or a copy of packed images, may be that of other bytes."""
    for inputs in prepared.inputs.values():
        for path in inputs.images:
            try:
                files = current_files(path, cache)
            except DataError:  # indexing reports it
                continue
            for file in files:
                file.unlink(missing_ok=True)


def forget(task: CompileTask) -> None:
    """Let the task be compiled again; the files of its shard stay as long as a manifest names them."""
    task.marker.unlink(missing_ok=True)


def named(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def _annotations(prepared: Prepared, planned: Planned) -> Iterator[AnnotationsTask]:
    for dataset in prepared.blend.datasets:
        yield AnnotationsTask(
            request=request_of(prepared.blend, dataset, prepared.inputs[dataset.name]),
            sha256={entry["file"]: entry["sha256"] for entry in planned.ingested[dataset.name].inputs},
        )


def _forget_records(planned: Planned, name: str, *, with_ingest: bool) -> None:
    """Remove the records of a dataset that have frames as images, and those of ingest as well if its files changed."""
    folder = planned.stage.spools[name].folder
    ingest = folder.name[: len(name) + 17]  # the name of a folder with frames begins with that of the records
    for other in list(folder.parent.glob(f"{ingest}*")):
        if with_ingest or other.name != ingest:
            shutil.rmtree(other)
