"""A stage between ingest and fingerprints, for datasets with `frames: even:N`: each animation, video or folder of
frames becomes N images in its place, so that all later stages count, compare and split its frames as images.

Rules: it opens each file once, however many records show it. As in fingerprints.py, a task is plain data, and its key
covers all that its result depends on. The spool of a dataset with frames is a folder of its own, next to that of
ingest, of which it has links to the embedded images.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from preprocess.adapters.groups import image_groups
from preprocess.compiler.image_states import States, image_states
from preprocess.compiler.ingest import Ingested, content_key, sealed_files
from preprocess.compiler.opened import open_dataset
from preprocess.compiler.sealed_json import read_sealed, write_sealed
from preprocess.compiler.spool import Spool, reject_all, write_spool
from preprocess.compiler.task_runner import TaskRunner
from preprocess.compiler.worker_deaths import deadly_items, died_detail, noting
from preprocess.compiler_version import libraries
from preprocess.conversation import Conversation, Image, Reject
from preprocess.errors import RejectError
from preprocess.images.embedded import FILES as EMBEDDED
from preprocess.images.frames import frames_of
from preprocess.images.stores import StoreList, open_stores
from preprocess.images.videos import reader_version
from shards.files import partial_path, replace_file, sync_folder

FOLDER = "frames"
VERSION = 1
"""Raise it with every change that can alter a choice of frames; then those of earlier builds are made again"""
_TASK_IMAGES = 256
_DONE = "frames.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesTask:
    """Some references of a dataset. positions: numbers in the list of all images of its spool. count: N of even:N."""

    spool: Path
    stores: tuple[Path, ...]
    cache: Path
    positions: npt.NDArray[np.int64]
    count: int
    max_pixels: int
    key: str

    @property
    def marker(self) -> Path:
        """The file of its result."""
        return self.cache / FOLDER / f"{self.key[:32]}.json"


Shown = Mapping[str, Any]
"""What is shown of a reference, as JSON: {"images": [[name, frame], ...], "notes"}, or {"reason", "detail"}"""


@dataclass(frozen=True, slots=True)
class FramesStage:
    """All that the stage needs of a build. `used` collects the files and folders in the cache that the build keeps."""

    cache: Path
    max_pixels: int
    run: TaskRunner
    used: set[Path]

    def spread(
        self, dataset: str, ingested: Ingested, spool: Spool, stores: tuple[Path, ...], count: int
    ) -> tuple[Ingested, Spool]:
        """The dataset with frames as images. Raises OSError or MemoryError if another try may succeed."""
        opened = open_stores(stores, self.cache)
        first, index = _distinct(spool)
        states = image_states({dataset: spool}, {dataset: stores}, self.cache, self.run)[dataset]
        tasks = [
            FramesTask(
                spool=spool.folder,
                stores=stores,
                cache=self.cache,
                positions=positions,
                count=count,
                max_pixels=self.max_pixels,
                key=_key(spool, opened, positions, states, count, self.max_pixels),
            )
            for positions in np.split(first, range(_TASK_IMAGES, len(first), _TASK_IMAGES))
            if len(positions)
        ]
        self.used.update([spool.folder, *(task.marker for task in tasks)])
        parts = self.run(
            "choosing frames",
            run_frames,
            tasks,
            known=read_frames,
            weight=lambda task: len(task.positions),
            marker=lambda task: task.marker,
        )
        folder = (
            spool.folder.parent / f"{spool.folder.name}-{content_key({'tasks': [task.key for task in tasks]})[:16]}"
        )
        shown = [one for part in parts for one in part]
        written = _written(folder)
        if written is None:
            written = _write(folder, dataset, _spread(spool, shown, index, stores), spool.folder)
        rejects = Counter(ingested.rejects)
        rejects.update(written["rejects"])
        made = Spool(folder)
        return replace(ingested, conversations=len(made), rejects=dict(sorted(rejects.items()))), made


def run_frames(task: FramesTask) -> list[Shown]:
    """What is shown of each of the task's references, also written to its marker.

    Raises OSError or MemoryError if another try may succeed.
    """
    spool, stores = open_dataset(task.spool, task.stores, task.cache)
    deadly = deadly_items(task.marker)
    result: list[Shown] = []
    with noting(task.marker) as note:
        for number, image in enumerate(spool.images_at(task.positions)):
            note(number)
            if number in deadly:
                detail = f"{image.name}: {died_detail(task.marker, deadly[number])}"
                result.append({"reason": "worker_died", "detail": detail})
            else:
                result.append(_shown(image, stores, task))
    task.marker.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(task.marker, result)
    return result


def read_frames(task: FramesTask) -> list[Shown] | None:
    """The result of an earlier run of the same task, if there is one."""
    try:
        result = read_sealed(task.marker)
    except (OSError, ValueError):
        return None
    return result if isinstance(result, list) and len(result) == len(task.positions) else None


def _shown(image: Image, stores: StoreList, task: FramesTask) -> Shown:
    try:
        frames = frames_of(image, stores, task.count, task.max_pixels)
    except RejectError as error:
        if error.reason == "image_missing":  # the compiler says so, and where to look
            return {"images": [[image.name, None]], "notes": []}
        return {"reason": error.reason, "detail": f"{image.name}: {error.detail}"}
    return {"images": [[one.name, one.frame] for one in frames.images], "notes": frames.notes}


def _key(
    spool: Spool, stores: StoreList, positions: npt.NDArray[np.int64], states: States, count: int, max_pixels: int
) -> str:
    content = xxhash.xxh3_128(states[positions].astype("<u8").tobytes())
    for image in spool.images_at(positions):
        with contextlib.suppress(RejectError):
            content.update("\0".join([image.name, *stores.names_below(image), ""]).encode("utf-8", "surrogatepass"))
    return content_key(
        {
            "version": VERSION,
            "content": content.hexdigest(),
            "count": count,
            "max_pixels": max_pixels,
            "pillow": libraries()["pillow"],
            "videos": reader_version(),
        }
    )


def _distinct(spool: Spool) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each reference is first named in the list of all images, and for each image of the list its number."""
    names, stores, _ = spool.image_names()
    if not len(names):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    pair = names.dictionary_encode().indices.to_numpy().astype(np.int64) * 2**16 + stores + 1
    _, first, index = np.unique(pair, return_index=True, return_inverse=True)
    order = np.argsort(first)  # in the order of the records, which is often that of the archive
    return first[order], np.argsort(order)[index.reshape(-1)]


def _spread(
    spool: Spool, shown: Sequence[Shown], index: npt.NDArray[np.int64], stores: tuple[Path, ...]
) -> Iterator[Conversation | Reject]:
    """The conversations with frames in the place of their references, or the reject that says why not."""
    begin = 0
    for row, count in enumerate(spool.counts("images").tolist()):
        conversation = spool[row]
        found = [shown[number] for number in index[begin : begin + count].tolist()]
        begin += count
        broken = next((one for one in found if "reason" in one), None)
        if broken is None:
            yield _with_frames(conversation, found, stores) if found else conversation
        else:
            yield from reject_all(conversation, broken["reason"], broken["detail"])


def _with_frames(conversation: Conversation, shown: Sequence[Shown], stores: tuple[Path, ...]) -> Conversation:
    """The files of a folder add their groups, since other records may show them as images."""
    rest, files = iter(shown), []
    turns = []
    for turn in conversation.turns:
        parts: list[str | Image] = []
        for part in turn.parts:
            if isinstance(part, str):
                parts.append(part)
                continue
            frames = [Image(name=name, store=part.store, frame=frame) for name, frame in next(rest)["images"]]
            files += [image for image in frames if image.name != part.name]
            parts += frames
        turns.append(replace(turn, parts=tuple(parts)))
    groups = [
        group
        for image in files
        for group in image_groups(stores if image.store is None else stores[image.store : image.store + 1], image.name)
    ]
    notes = [note for one in shown for note in one["notes"]]
    return replace(
        conversation,
        turns=tuple(turns),
        groups=tuple(dict.fromkeys((*conversation.groups, *groups))),
        notes=tuple(dict.fromkeys((*conversation.notes, *notes))),
    )


def _written(folder: Path) -> Mapping[str, Any] | None:
    """What `_write` returned in an earlier run; None if there is no such spool, or a damaged one."""
    try:
        written: Mapping[str, Any] = read_sealed(folder / _DONE, sealed_files(folder), owner=folder.name)
    except (OSError, ValueError):
        return None
    return written


def _write(folder: Path, dataset: str, stream: Iterator[Conversation | Reject], ingest: Path) -> Mapping[str, Any]:
    """Complete or not at all. Its rejects are those of ingest, and then its own; what is returned counts its own."""
    partial = partial_path(folder)
    partial.mkdir(parents=True)
    try:
        written = write_spool(partial, dataset, stream)
        rejects = (ingest / "rejects.jsonl").read_bytes() + (partial / "rejects.jsonl").read_bytes()
        replace_file(partial / "rejects.jsonl", rejects)
        for name in EMBEDDED:
            if (ingest / name).is_file():
                _link(ingest / name, partial / name)
        write_sealed(partial / _DONE, written, sealed_files(partial), owner=folder.name)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
        sync_folder(folder.parent)
        return written
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _link(path: Path, new: Path) -> None:
    try:
        os.link(path, new)
    except OSError:  # a file system without links
        shutil.copyfile(path, new)
