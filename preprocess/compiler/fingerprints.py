"""A stage between ingest and split: the fingerprints of images, when the split or `dedupe` needs them.

Rules: it reads each image once, however many records show it. Like a compile task, a task is plain data, and its key
covers all that its result depends on, so an image is not read again until its file changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from preprocess.compiler.array_files import read_array, write_array
from preprocess.compiler.image_states import States, image_paths
from preprocess.compiler.ingest import content_key
from preprocess.compiler.opened import open_dataset
from preprocess.compiler.spool import Spool
from preprocess.compiler.task_runner import TaskRunner
from preprocess.compiler.worker_deaths import deadly_items, noting
from preprocess.compiler_version import libraries
from preprocess.conversation import Image
from preprocess.dedupe.equal_rows import first_equal, narrow
from preprocess.dedupe.fingerprint import (
    FINGERPRINT,
    VERSION,
    Fingerprints,
    Level,
    as_kind_of,
    bytes_fingerprint,
    frame_fingerprint,
    kind_of,
    look_fingerprint,
    tail_fingerprint,
)
from preprocess.errors import RejectError
from preprocess.images.frames import read_frame
from preprocess.images.stores import StoreList
from preprocess.images.videos import reader_version

FOLDER = "fingerprints"
_TASK_IMAGES: Mapping[Level, int] = {"tail": 16384, "bytes": 2048, "look": 1024}


@dataclass(frozen=True, slots=True, kw_only=True)
class FingerprintTask:
    """Some images of a dataset. positions: numbers in the list of all images of its spool. max_pixels: of the blend."""

    dataset: str
    spool: Path
    stores: tuple[Path, ...]
    cache: Path
    positions: npt.NDArray[np.int64]
    level: Level
    max_pixels: int
    key: str

    @property
    def marker(self) -> Path:
        """The file of its result."""
        return self.cache / FOLDER / f"{self.key[:32]}.npy"


class ImageTable:
    """The distinct images of a blend, numbered from 0; an image that several records or datasets name has one number.

    numbers: dataset -> for each image of its spool, in the spool's order, its number, int32 or int64.
    """

    def __init__(self, stage: FingerprintStage) -> None:
        paths = image_paths(stage.spools, stage.stores, stage.run)
        starts = np.cumsum([0, *map(len, paths.values())])
        self._datasets = tuple(stage.spools)
        first = first_equal(np.concatenate([np.zeros(0, np.uint64), *paths.values()]))
        del paths
        is_first = first == np.arange(len(first))
        distinct = np.flatnonzero(is_first)
        ranks: npt.NDArray[Any] = np.cumsum(is_first, dtype=narrow(len(first)))
        ranks -= 1
        numbers = ranks[first]  # in the order of the blend
        self._dataset = (np.searchsorted(starts, distinct, "right") - 1).astype(np.int16)
        self._position = distinct - starts[self._dataset]
        of_datasets = np.split(numbers, starts[1:-1])
        self.numbers: dict[str, npt.NDArray[Any]] = dict(zip(self._datasets, of_datasets, strict=True))

    def __len__(self) -> int:
        return len(self._position)

    def of_dataset(self, chosen: npt.NDArray[np.int64]) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
        """Cut ascending numbers by the dataset that an image is read from: (dataset, numbers)."""
        for code, name in enumerate(self._datasets):
            yield name, chosen[self._dataset[chosen] == code]

    def positions(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where each image is first named in the spool of its dataset."""
        return np.asarray(self._position[chosen])


@dataclass(frozen=True, slots=True, kw_only=True)
class FingerprintStage:
    """All that the stage needs of a build.

    states: of the images of each spool. used: collects the files of its results, which the cache keeps. looks: collects
    the fingerprints of level look.
    """

    spools: Mapping[str, Spool]
    stores: Mapping[str, tuple[Path, ...]]
    states: Mapping[str, States]
    cache: Path
    max_pixels: int
    run: TaskRunner
    used: set[Path]
    looks: list[Fingerprints]

    @property
    def threads(self) -> int:
        return self.run.workers

    def fingerprints(self, images: ImageTable, chosen: npt.NDArray[np.int64], level: Level) -> Fingerprints:
        """One fingerprint for each of the ascending numbers `chosen`. Raises DataError or OSError as reading does."""
        tasks, order = [], [np.zeros(0, np.int64)]
        for dataset, numbers in images.of_dataset(chosen):
            if not len(numbers):
                continue
            spool, states = self.spools[dataset], self.states[dataset]
            in_file = spool.lists("frames")[0] if level == "look" else np.zeros(0, np.int64)
            for start in range(0, len(numbers), _TASK_IMAGES[level]):
                part = numbers[start : start + _TASK_IMAGES[level]]
                positions = images.positions(part)
                tasks.append(
                    FingerprintTask(
                        dataset=dataset,
                        spool=spool.folder,
                        stores=self.stores[dataset],
                        cache=self.cache,
                        positions=positions,
                        level=level,
                        max_pixels=self.max_pixels,
                        key=_key(
                            states[positions],
                            in_file[positions] if len(in_file) else in_file,
                            level,
                            self.max_pixels,
                        ),
                    )
                )
                order.append(part)
        self.used.update(task.marker for task in tasks)
        parts = self.run(
            "comparing images",
            run_fingerprint,
            tasks,
            known=read_fingerprints,
            weight=lambda task: len(task.positions),
            marker=lambda task: task.marker,
        )
        result = np.zeros(len(chosen), kind_of(level))
        result[np.searchsorted(chosen, np.concatenate(order))] = np.concatenate([result[:0], *parts])
        if level == "look":
            self.looks.append(result)
        return result


def run_fingerprint(task: FingerprintTask) -> Fingerprints:
    """The task's fingerprints, also written to its marker. Raises OSError or MemoryError if another try may succeed."""
    spool, opened = open_dataset(task.spool, task.stores, task.cache)
    result = np.zeros(len(task.positions), FINGERPRINT)
    deadly = deadly_items(task.marker)
    previous = None
    reads = iter(spool.images_at(task.positions)) if task.level != "tail" else iter(())
    with noting(task.marker) as note, opened.reading_ahead(reads) as stores:
        for row, image in enumerate(spool.images_at(task.positions)):
            note(row)
            file = (image.name, image.store)
            try:
                if row in deadly:
                    raise RejectError("worker_died", deadly[row])
                if task.level == "look":
                    result[row] = _look(image, stores, task.max_pixels)
                elif image.frame is not None and file == previous:  # frames of one file are copies of each other
                    result[row] = result[row - 1]
                elif task.level == "tail":
                    result[row] = tail_fingerprint(*stores.tail(image))
                else:
                    result[row] = bytes_fingerprint(stores.read(image))
            except RejectError:
                continue  # the compiler says why it is missing or broken
            finally:
                previous = file
    result = as_kind_of(task.level, result)
    write_array(task.marker, result)
    return result


def _look(image: Image, stores: StoreList, max_pixels: int) -> Fingerprints:
    if image.frame is None:
        return look_fingerprint(stores.read(image), max_pixels)
    frame = read_frame(image, stores, max_pixels, sixteen_bit=True)
    return frame_fingerprint(frame.image, stores.read(image), image.frame)


def read_fingerprints(task: FingerprintTask) -> Fingerprints | None:
    """The result of an earlier run of the same task, if there is one."""
    return read_array(task.marker, kind_of(task.level), len(task.positions))


def _key(states: States, in_file: npt.NDArray[np.int64], level: Level, max_pixels: int) -> str:
    """states, in_file: of the task's images."""
    parts = {"version": VERSION, "level": level, "content": xxhash.xxh3_128_hexdigest(states.astype("<u8").tobytes())}
    if level == "look":
        parts |= {"pillow": libraries()["pillow"], "max_pixels": max_pixels}
        if (in_file >= 0).any():
            parts["videos"] = reader_version()
    return content_key(parts)
