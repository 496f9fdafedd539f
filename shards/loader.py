"""Batches of tensors from a build, for one rank of a run. It needs torch, so `import shards` does not import it.

Rules
- The sequence of global batches is a function of (manifest, seed, row settings) alone: not of ranks, workers or of
  where a run was stopped. A rank takes its rows of every global batch; a worker makes whole batches of a rank.
- The state is one position. It is that of the last batch given out: what workers have made ahead is made again.
- Images leave as uint8; batch.normalize turns them into the encoder's numbers on the device.

    loader = Loader(shards.open("build"), batch_size=16, max_length=4096, workers=4)
    for batch in loader:
        ...
        torch.save(loader.state_dict(), "state.pt")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from shards.batch import Batch
from shards.build import Build
from shards.decode import DECODERS
from shards.errors import ShardError
from shards.order import StoredOrder
from shards.reader import Part, Reader
from shards.rows import WINDOW, Rows
from shards.store import LocalStore

STATE_VERSION = 1

SHUFFLE_WINDOW = 4096
"""Samples shuffled among each other by `shuffle="shards"`."""


class Loader:
    """Endless batches over the training split, or one pass over another split.

    build: what shards.open gives.
    batch_size: rows of a global batch, over all ranks.
    max_length: positions of a row; samples fill it (`packed`), or have a row each, padded to the longest of a batch.
    max_images: most images of a row; None sets no limit.
    rank, world_size: which part of each global batch this process takes.
    workers: processes that read and decode ahead; 0 does it in this one. prefetch: batches each of them makes ahead.
    shuffle: samples (from a local disk), shards (from remote storage and rotating disks), none (as they lie);
        default: samples on a local disk, shards elsewhere, none for the eval split.
    epochs: how many to give; default: no end for train, one for eval. The last batch may hold empty rows.
    decode: exact gives Pillow's pixels bit for bit; fast those within 1.5/255 on average; none leaves images out.
    pin_memory: page-locked tensors; default: if there is a CUDA device.
    """

    def __init__(
        self,
        build: Build,
        *,
        split: str = "train",
        batch_size: int,
        max_length: int,
        max_images: int | None = None,
        packed: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        prefetch: int = 2,
        shuffle: Literal["samples", "shards", "none"] | None = None,
        epochs: int | None = None,
        decode: Literal["exact", "fast", "none"] = "exact",
        window: int = WINDOW,
        pin_memory: bool | None = None,
    ) -> None:
        """Raises ShardError for settings that do not fit the build or each other."""
        if shuffle is None:
            shuffle = "none" if split != "train" else "samples" if isinstance(build.store, LocalStore) else "shards"
        _check_layout(batch_size, rank, world_size, workers)
        _check_choice("decode", decode, (*DECODERS, "none"))
        _check_choice("shuffle", shuffle, ("samples", "shards", "none"))
        self._build, self._samples = build, build[split]
        self._seed, self._batch_size = seed, batch_size
        self._rank, self._world_size = rank, world_size
        self._workers, self._prefetch = workers, prefetch
        self._epochs = epochs if epochs is not None or split == "train" else 1
        self._pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._settings = {
            "split": split,
            "shuffle": shuffle,
            "packed": packed,
            "max_length": max_length,
            "max_images": max_images,
            "window": window,
        }
        image_tokens = int(build.manifest.content["config"]["image_tokens"])
        self._order = (
            StoredOrder(len(self._samples))
            if shuffle == "none"
            else build.order(split, seed=seed, window=SHUFFLE_WINDOW if shuffle == "shards" else None)
        )
        if not len(self._order) and self._epochs is None:
            raise ShardError(f"{build.store.location}: the split {split} has no samples; see dsvl-prep stats")
        self._rows = Rows(
            self._samples,
            self._order,
            key=(build.manifest.hash, seed),
            image_tokens=image_tokens,
            max_length=max_length,
            max_images=max_images,
            packed=packed,
            window=window,
        )
        self._reader = Reader(build, split, max_length if packed else None, image_tokens, decode)
        self._position = 0

    @property
    def epoch_length(self) -> int:
        """Samples of an epoch; `position // epoch_length` is the epoch."""
        return len(self._order)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins. `rows`: the settings that rows depend on."""
        return {
            "version": STATE_VERSION,
            "manifest": self._build.manifest.hash,
            "seed": self._seed,
            "position": self._position,
            "rows": dict(self._settings),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader stopped, of any world size, workers and batch size.

        Raises ShardError if that was over another build, seed or kind of row, or by a newer release.
        """
        version = state.get("version")
        if version != STATE_VERSION:
            newer = isinstance(version, int) and version > STATE_VERSION
            step = "update dsvl" if newer else "start anew"
            raise ShardError(f"loader state: version is {version!r}, this program reads {STATE_VERSION}; {step}")
        wanted = self.state_dict()
        for name in ("manifest", "seed", "rows"):
            if state.get(name) != wanted[name]:
                raise ShardError(
                    f"loader state: {name} is {_short(state.get(name))}, this loader has {_short(wanted[name])}; go on "
                    "with the build and settings of the run that saved it, or start anew"
                )
        position = state.get("position")
        if not isinstance(position, int) or position < 0:
            raise ShardError(f"loader state: position is {position!r}; wanted a number from 0")
        self._position = position

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the current position on. Raises ShardError if a sample is damaged or a worker died."""
        batches = DataLoader(
            self._reader,
            sampler=self._plan(),
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=self._prefetch if self._workers else None,
            pin_memory=self._pin_memory,
            collate_fn=_as_it_is,
        )
        for batch in _fenced(iter(batches)):
            if isinstance(batch, str):
                raise ShardError(batch)
            self._position = batch.position
            yield batch

    def _plan(self) -> _Plan:
        return _Plan(self._rows, self._position, self._batch_size, self._rank, self._world_size, self._epochs)


class _Plan:
    """The parts of a rank, in order. Runs in the main process; a worker is told its rows."""

    def __init__(
        self, rows: Rows, position: int, batch_size: int, rank: int, world_size: int, epochs: int | None
    ) -> None:
        self._rows, self._position, self._epochs = rows, position, epochs
        self._batch_size, self._share = batch_size, batch_size // world_size
        self._rank = rank

    def __iter__(self) -> Iterator[Part]:
        position = self._position
        while True:
            rows, position = self._rows.take(position, self._batch_size, epochs=self._epochs)
            if not rows:
                return
            rows += [()] * (self._batch_size - len(rows))
            start = self._rank * self._share
            yield Part(rows[start : start + self._share], position)


def _as_it_is(batch: Any) -> Any:
    return batch


def _fenced(batches: Iterator[Batch | str]) -> Iterator[Batch | str]:
    """torch tells that a worker died by a RuntimeError alone."""
    try:
        yield from batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ShardError(
            f"a loader worker died: {error}; if memory ran out, use fewer workers or prefetch less"
        ) from error


def _check_layout(batch_size: int, rank: int, world_size: int, workers: int) -> None:
    if world_size < 1 or not 0 <= rank < world_size:
        raise ShardError(f"loader: rank {rank} of {world_size} ranks; wanted a rank from 0 to below their number")
    if batch_size < 1 or batch_size % world_size:
        raise ShardError(
            f"loader: batch_size {batch_size} cannot be shared by {world_size} ranks; wanted a multiple of {world_size}"
        )
    if workers < 0:
        raise ShardError(f"loader: workers is {workers}; wanted 0 or more")


def _check_choice(name: str, got: str, choices: Sequence[str]) -> None:
    if got not in choices:
        raise ShardError(f"loader: {name} is {got!r}; wanted one of {', '.join(choices)}")


def _short(value: object) -> str:
    return f"{value:.12}" if isinstance(value, str) else repr(value)
