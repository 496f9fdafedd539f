"""Batches of tensors from a build, for one rank of a run. It needs torch, so `import shards` does not import it.

Rules
- The sequence of global batches is a function of (manifest, seed, sequence settings) alone: not of ranks, workers or of
  where a run was stopped. A rank takes its sequences of every global batch; a worker makes whole batches of a rank.
- The state is one cursor, that of the last batch given out: what workers have made ahead is made again.
- Images leave as uint8; batch.normalize turns them into the encoder's numbers on the device.

    loader = Loader(shards.open("build"), batch_size=16, max_length=4096, workers=4)
    for batch in loader:
        ...
        torch.save(loader.state_dict(), "state.pt")
"""

from __future__ import annotations

import operator
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from shards.build import Build
from shards.errors import ShardError
from shards.images.decode import DECODERS
from shards.loader.batch import Batch
from shards.loader.guests import refuse_workers_of_torch
from shards.loader.memory_blocks import LocalBlocks
from shards.loader.reader import BatchReader, BatchRequest
from shards.loader.workers import batches_ahead
from shards.sampling.even_share import even_order, even_share
from shards.sampling.order import ListedOrder, StoredOrder
from shards.sampling.packed_sequences import WINDOW, AnyOrder, PackedSequences
from shards.storage.store import LocalStore

STATE_VERSION = 2

SHUFFLE_SAMPLES = 4096
SHUFFLE_SHARDS = 8
"""`shuffle="shards"` shuffles at least this many samples, and this many times the largest shard, among each other."""

_PAD_TO = 8  # unpacked sequences have a length that tensor cores like


class Loader:
    """Endless batches over the training split, or one pass over another split.

    build: what shards.open gives.
    batch_size: sequences of a global batch, over all ranks.
    max_length: tokens of a sequence; samples fill it (`packed`), or have one each, padded to the longest of a batch.
    max_images: most images of a sequence, in a build with tiles most tiles; None sets no limit.
    rank, world_size: which part of each global batch this process takes.
    workers: processes that read and decode ahead; 0 does it in this one. prefetch: batches each of them makes ahead.
    shuffle: samples (from a local disk), shards (from remote storage and rotating disks), none (as they lie);
        default: samples on a local disk, shards elsewhere, none for the eval split.
    epochs: how many to give; default: no end for train, one for eval. The last batch may hold empty sequences.
    max_sequences: for the eval split, most sequences of an epoch; they hold the datasets in proportion to their sizes.
    pack_window: samples that are packed together. shuffle_window: samples that `shuffle="shards"` shuffles among each
        other; default: 4,096, or eight of the largest shard if that is more.
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
        max_sequences: int | None = None,
        decode: Literal["exact", "fast", "none"] = "exact",
        pack_window: int = WINDOW,
        shuffle_window: int | None = None,
        pin_memory: bool | None = None,
    ) -> None:
        """Raises ShardError for settings that do not fit the build or each other, and for samples that are too long."""
        if not isinstance(build, Build):
            raise ShardError(f"loader: build is {build!r}; expected what shards.open gives")
        seed = _whole("seed", seed, None)
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("max_length", max_length, 1),
            ("max_images", max_images, 0),
            ("rank", rank, 0),
            ("world_size", world_size, 1),
            ("workers", workers, 0),
            ("prefetch", prefetch, 1),
            ("epochs", epochs, 0),
            ("max_sequences", max_sequences, 1),
            ("pack_window", pack_window, 1),
            ("shuffle_window", shuffle_window, 1),
        ):
            if value is not None or name not in ("max_images", "epochs", "max_sequences", "shuffle_window"):
                _whole(name, value, least)
        if shuffle is None:
            shuffle = "none" if split != "train" else "samples" if isinstance(build.store, LocalStore) else "shards"
        _check_layout(batch_size, rank, world_size)
        _check_choice("decode", decode, (*DECODERS, "none"))
        _check_choice("shuffle", shuffle, ("samples", "shards", "none"))
        self._build, self._samples = build, build[split]
        self._seed, self._batch_size = seed, batch_size
        self._rank, self._world_size = rank, world_size
        self._workers, self._prefetch = workers, prefetch
        self._epochs = epochs if epochs is not None or split == "train" else 1
        self._pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        if max_sequences is not None and shuffle != "none":
            raise ShardError(f"loader: max_sequences with shuffle {shuffle}; expected none, as for the eval split")
        if shuffle == "shards":
            shuffle_window = shuffle_window or max(SHUFFLE_SAMPLES, SHUFFLE_SHARDS * self._samples.largest_shard)
        else:
            shuffle_window = None
        self._settings: dict[str, Any] = {
            "split": split,
            "shuffle": shuffle,
            "shuffle_window": shuffle_window,
            "packed": packed,
            "pack_window": pack_window,
            "max_length": max_length,
            "max_images": max_images,
        }
        key = build.manifest.hash, seed
        sequences = partial(
            PackedSequences,
            self._samples,
            key=key,
            image_tokens=build.manifest.config.image_tokens,
            max_length=max_length,
            max_images=max_images,
            packed=packed,
            window=pack_window,
        )
        self._order: AnyOrder
        if max_sequences is not None:
            self._settings["max_sequences"] = max_sequences
            samples = even_order(list(self._samples.sizes.values()), key)
            self._order = ListedOrder(
                even_share(samples, lambda part: sequences(ListedOrder(part)).count(1), max_sequences)
            )
        elif shuffle == "none":
            self._order = StoredOrder(len(self._samples))
        else:
            self._order = build.order(split, seed=seed, window=shuffle_window)
        if not len(self._order) and self._epochs is None:
            raise ShardError(f"{build.store.location}: the split {split} has no samples; see dsvl-prep stats")
        self._sequences = sequences(self._order)
        limits = build.manifest.config.limits
        most = build.manifest.most_per_sample
        if max_length < limits.max_length or (max_images is not None and (most is None or max_images < most)):
            self._sequences.check_all()  # the build's own limits do not vouch for these
        self._reader = BatchReader(build, split, decode)
        self._length = max_length if packed else None
        self._cursor = 0
        self._resumed = False

    @property
    def epoch_length(self) -> int:
        """Samples of an epoch; `cursor // epoch_length` is the epoch."""
        return len(self._order)

    def epochs_before(self, cursor: int) -> float:
        """Epochs that were given out before a cursor of `state_dict`: its samples, out of those of an epoch."""
        return self._sequences.samples_before(cursor) / self.epoch_length

    def count_sequences(self, epochs: int) -> int:
        """Sequences of this many epochs. Each is packed once for it, which takes some seconds for a million samples."""
        return self._sequences.count(epochs)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins. `sequences`: the settings that sequences depend on."""
        return {
            "version": STATE_VERSION,
            "manifest": self._build.manifest.hash,
            "seed": self._seed,
            "cursor": self._cursor,
            "sequences": dict(self._settings),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where another loader stopped, of any world size, workers and batch size.

        Raises ShardError if that was over another build, seed or kind of sequence, or by a newer release.
        """
        if not isinstance(state, Mapping):
            raise ShardError(f"loader state: is {state!r}; expected what state_dict gave")
        version = state.get("version")
        if version != STATE_VERSION:
            newer = isinstance(version, int) and version > STATE_VERSION
            step = "update dsvl" if newer else "start again"
            raise ShardError(f"loader state: version is {version!r}, this program reads {STATE_VERSION}; {step}")
        own_state = self.state_dict()
        saved = state.get("sequences")
        pairs = [(name, state.get(name), own_state[name]) for name in ("manifest", "seed")]
        settings = saved if isinstance(saved, Mapping) else {}
        pairs += [(name, settings.get(name), own) for name, own in self._settings.items()]
        for name, got, own in pairs:
            if got != own:
                raise ShardError(
                    f"loader state: {name} is {_short(got)}, this loader has {_short(own)}; continue with the build "
                    "and settings of the run that saved it, or start again"
                )
        self._cursor = _whole("cursor of the state", state.get("cursor"), 0)
        self._resumed = True

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the current cursor on; without a loaded state, of other splits than train from the beginning.

        Raises ShardError if a sample is damaged or a worker died. One iteration at a time: it sets the cursor.
        """
        refuse_workers_of_torch()
        if self._settings["split"] != "train" and not self._resumed:
            self._cursor = 0
        self._resumed = False
        with closing(self._batches()) as batches:
            for batch in batches:
                self._cursor = batch.cursor
                yield batch.pin_memory() if self._pin_memory else batch

    def _batches(self) -> Generator[Batch]:
        if self._workers:
            yield from batches_ahead(self._reader, self._plan(), workers=self._workers, prefetch=self._prefetch)
            return
        blocks = LocalBlocks()
        for request in self._plan():
            yield Batch.of(*self._reader.fill(request, blocks.take))

    def _plan(self) -> _Plan:
        share = self._batch_size // self._world_size
        return _Plan(
            self._sequences, self._cursor, self._batch_size, self._rank * share, share, self._epochs, self._length
        )


@dataclass(frozen=True, slots=True)
class _Plan:
    """The requests of a rank, in order: of each batch the sequences from `first` on. Runs in the main process."""

    sequences: PackedSequences
    cursor: int
    batch_size: int
    first: int
    count: int
    epochs: int | None
    length: int | None
    """None pads to the longest of the global batch, so that its shape does not depend on the ranks"""

    def __iter__(self) -> Iterator[BatchRequest]:
        cursor = self.cursor
        while True:
            sequences, cursor = self.sequences.take(cursor, self.batch_size, epochs=self.epochs)
            if not sequences:
                return
            length = self.length or -(-self.sequences.longest(sequences) // _PAD_TO) * _PAD_TO
            sequences += [()] * (self.batch_size - len(sequences))
            yield BatchRequest(sequences[self.first : self.first + self.count], length, cursor)


def _check_layout(batch_size: int, rank: int, world_size: int) -> None:
    if rank >= world_size:
        raise ShardError(f"loader: rank {rank} of {world_size} ranks; expected a rank from 0 to below their number")
    if batch_size % world_size:
        raise ShardError(
            f"loader: batch_size {batch_size} cannot be shared by {world_size} ranks; expected a multiple of "
            f"{world_size}"
        )


def _whole(name: str, value: object, least: int | None) -> int:
    """The value as Python's own integer: numpy's are written otherwise where a key is made of them."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # it raises TypeError for what is not an integer
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or (least is not None and number < least):
        expected = "a whole number" if least is None else f"a whole number from {least}"
        raise ShardError(f"loader: {name} is {value!r}; expected {expected}")
    return number


def _check_choice(name: str, got: str, choices: Sequence[str]) -> None:
    if got not in choices:
        raise ShardError(f"loader: {name} is {got!r}; expected one of {', '.join(choices)}")


def _short(value: object) -> str:
    return f"{value:.12}" if isinstance(value, str) else repr(value)
