"""The state of every image that records name: a number that changes with the file, looked up once in a build.

Rules: it costs no Python object for each image in the process that plans; tasks look up ranges of rows, in parallel if
there are many. A state covers the image's name, its frame, and the size and mtime of its file, or why there is none,
since a missing image may appear later.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from preprocess.compiler.split_assignment import mix
from preprocess.compiler.spool import Spool
from preprocess.compiler.task_runner import TaskRunner
from preprocess.images.stores import StoreList, open_stores

States = npt.NDArray[np.uint64]
"""uint64 [P]: one for each image of a spool, in the spool's order"""

_TASK_ROWS = 65536
_FEW_IMAGES = 32768
"""So many are looked up faster than a worker starts"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatesTask:
    """The rows of a spool from `start` to before `stop`. look: which look at all images it is part of."""

    spool: Path
    stores: tuple[Path, ...]
    cache: Path
    start: int
    stop: int
    look: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PathsTask:
    """The rows of a spool from `start` to before `stop`. roots: the paths of its stores on the driver."""

    spool: Path
    roots: tuple[bytes, ...]
    start: int
    stop: int


def image_states(
    spools: Mapping[str, Spool], stores: Mapping[str, tuple[Path, ...]], cache: Path, run: TaskRunner
) -> dict[str, States]:
    """Dataset -> the states of its images now. Raises DataError or OSError as stores do."""
    look = secrets.token_hex(8)
    tasks = [
        StatesTask(spool=spool.folder, stores=stores[name], cache=cache, start=start, stop=stop, look=look)
        for name, spool in spools.items()
        for start, stop in _ranges(spool)
    ]
    if sum(spool.num_images for spool in spools.values()) <= _FEW_IMAGES:
        parts = [run_states(task) for task in tasks]
        _open.cache_clear()  # this process may continue, and a store may hold a lock
    else:
        parts = run.every_time("looking at images", run_states, tasks, weight=lambda task: task.stop - task.start)
    return _by_dataset(spools, parts)


def image_paths(
    spools: Mapping[str, Spool], stores: Mapping[str, tuple[Path, ...]], run: TaskRunner
) -> dict[str, npt.NDArray[np.uint64]]:
    """Dataset -> for each image of its spool a hash of its path, and for a frame of its number, uint64 [P].

    Datasets that read the same file name the same image, so a path starts at the file system's root; that of an image
    without a store is in all stores that are searched for it.
    """
    tasks = [
        PathsTask(
            spool=spool.folder,
            roots=tuple(os.fsencode(path.resolve()) for path in stores[name]),
            start=start,
            stop=stop,
        )
        for name, spool in spools.items()
        for start, stop in _ranges(spool)
    ]
    if sum(spool.num_images for spool in spools.values()) <= _FEW_IMAGES:
        parts = [run_paths(task) for task in tasks]
    else:
        parts = run.every_time("comparing names", run_paths, tasks, weight=lambda task: task.stop - task.start)
    return _by_dataset(spools, parts)


def run_states(task: StatesTask) -> States:
    """The states of the task's images. Raises DataError, or OSError if another try may find an image."""
    names, in_store, in_file = Spool(task.spool).images_between(task.start, task.stop)
    if not len(names):
        return np.zeros(0, np.uint64)
    stores = _open(task.stores, task.cache, task.look)
    first, number = _distinct(names, in_store)
    distinct = names.take(pa.array(first))
    stamps = stores.stamps(distinct.to_pylist(), in_store[first])
    file = _hashes(distinct)
    for field in ("size", "mtime_ns"):
        file = mix(file ^ stamps[field].view(np.uint64), 0)
    return _with_frames(file[number], in_file)


def run_paths(task: PathsTask) -> npt.NDArray[np.uint64]:
    """A hash of the path of each of the task's images."""
    names, in_store, in_file = Spool(task.spool).images_between(task.start, task.stop)
    first, number = _distinct(names, in_store)
    root = pa.array([b"\0".join(task.roots), *task.roots], pa.binary()).take(pa.array(in_store[first] + 1))
    paths = pc.binary_join_element_wise(root, names.take(pa.array(first)).cast(pa.binary()), b"/")
    return _with_frames(_hashes(paths)[number], in_file)


def _ranges(spool: Spool) -> list[tuple[int, int]]:
    return [(start, min(start + _TASK_ROWS, len(spool))) for start in range(0, len(spool), _TASK_ROWS)]


def _distinct(names: pa.Array, in_store: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of N images the first of each file, in no order, and for each image its number among these."""
    encoded = names.dictionary_encode()
    if len(encoded.dictionary) == len(names):
        every = np.arange(len(names))
        return every, every
    pair = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64) * 2**16 + in_store + 1
    _, first, number = np.unique(pair, return_index=True, return_inverse=True)
    return first, number.reshape(-1)


def _hashes(names: pa.Array) -> npt.NDArray[np.uint64]:
    return np.fromiter(map(xxhash.xxh3_64_intdigest, names.cast(pa.binary()).to_pylist()), np.uint64, len(names))


def _with_frames(files: npt.NDArray[np.uint64], in_file: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """in_file: the number of a frame in its file, or -1 for the whole file, which changes nothing."""
    if not (in_file >= 0).any():
        return files
    return np.where(in_file < 0, files, mix(files ^ (in_file + 1).astype(np.uint64), 1))


def _by_dataset(spools: Mapping[str, Spool], parts: list[npt.NDArray[np.uint64]]) -> dict[str, npt.NDArray[np.uint64]]:
    result, remaining = {}, iter(parts)
    for name, spool in spools.items():
        result[name] = np.empty(spool.num_images, np.uint64)
        filled = 0
        for _ in _ranges(spool):
            part = next(remaining)
            result[name][filled : filled + len(part)] = part
            filled += len(part)
    return result


@lru_cache(maxsize=4)
def _open(stores: tuple[Path, ...], cache: Path, look: str) -> StoreList:
    """Opened once per worker process and look, so that an archive that was replaced since the last one is seen."""
    return open_stores(stores, cache)
