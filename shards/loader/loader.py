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

import logging
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any, Literal

import torch

from shards.build import Build
from shards.errors import ShardError
from shards.images.decode import DECODERS
from shards.loader.batch import Batch
from shards.loader.batch_requests import BatchRequests
from shards.loader.guests import IteratedHere, refuse_ranks_of_torch, refuse_workers_of_torch
from shards.loader.lookahead import Lookahead, with_strays
from shards.loader.memory_blocks import LocalBlocks
from shards.loader.order_settings import SHUFFLES, OrderSettings, cache_plan, choose_order
from shards.loader.reader import BatchReader, RangeReads
from shards.loader.saved_state import STATE_VERSION, check_saved
from shards.loader.settings import check_choice, check_layout, whole_number
from shards.loader.workers import batches_ahead
from shards.sampling.even_share import even_order, even_share
from shards.sampling.order import ListedOrder, StoredOrder
from shards.sampling.packed_sequences import AnyOrder, PackedSequences

logger = logging.getLogger("shards")

_OPTIONAL = ("max_images", "epochs", "max_sequences", "pack_window", "shuffle_window")


class Loader(IteratedHere):
    """Endless batches over the training split, or one pass over another split.

    build: what shards.open gives.
    batch_size: sequences of a global batch, over all ranks.
    max_length: tokens of a sequence; samples fill it (`packed`), or have one each, padded to the longest of a batch.
    max_images: most images of a sequence, in a build with tiles most tiles; None sets no limit.
    rank, world_size: which part of each global batch this process takes; default: all of it, which is refused for the
        train split where torch.distributed has several ranks.
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
        rank: int | None = None,
        world_size: int | None = None,
        workers: int = 0,
        prefetch: int = 2,
        shuffle: Literal["samples", "shards", "none"] | None = None,
        epochs: int | None = None,
        max_sequences: int | None = None,
        decode: Literal["exact", "fast", "none"] = "exact",
        pack_window: int | None = None,
        shuffle_window: int | None = None,
        pin_memory: bool | None = None,
    ) -> None:
        """Raises ShardError for settings that do not fit the build or each other, and for samples that are too long."""
        if not isinstance(build, Build):
            raise ShardError(f"loader: build is {build!r}; expected what shards.open gives")
        seed = whole_number("seed", seed, None)
        self._is_split = world_size is not None
        rank, world_size = (0 if rank is None else rank), (1 if world_size is None else world_size)
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
            if value is not None or name not in _OPTIONAL:
                whole_number(name, value, least)
        check_layout(batch_size, rank, world_size)
        check_choice("decode", decode, (*DECODERS, "none"))
        check_choice("shuffle", shuffle or "none", SHUFFLES)
        self._build, self._samples = build, build[split]
        self._seed, self._batch_size = seed, batch_size
        self._rank, self._world_size = rank, world_size
        self._workers, self._prefetch = workers, prefetch
        self._epochs = epochs if epochs is not None or split == "train" else 1
        self._pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        order = choose_order(
            build, split, shuffle=shuffle, shuffle_window=shuffle_window, pack_window=pack_window, ranks=world_size
        )
        if max_sequences is not None and order.shuffle != "none":
            raise ShardError(
                f"loader: max_sequences with shuffle {order.shuffle}; expected none, as for the eval split"
            )
        self._settings: dict[str, Any] = {
            "split": split,
            "packed": packed,
            "max_length": max_length,
            "max_images": max_images,
        }
        if max_sequences is not None:
            self._settings["max_sequences"] = max_sequences
        self._chose_windows = shuffle_window is None and pack_window is None
        self._use(order)
        if not len(self._order) and self._epochs is None:
            raise ShardError(f"{build.store.location}: the split {split} has no samples; see dsvl-prep stats")
        limits = build.manifest.config.limits
        most = build.manifest.most_per_sample
        if max_length < limits.max_length or (max_images is not None and (most is None or max_images < most)):
            self._sequences.check_all()  # the build's own limits do not vouch for these
        self._reader = BatchReader(build, split, decode)
        self._length = max_length if packed else None
        self._cursor = 0
        self._resumed = False
        self._is_logged = False

    def _use(self, settings: OrderSettings) -> None:
        """Read in this order."""
        build, split = self._build, self._settings["split"]
        key = build.manifest.hash, self._seed
        sequences = partial(
            PackedSequences,
            self._samples,
            key=key,
            image_tokens=build.manifest.config.image_tokens,
            max_length=self._settings["max_length"],
            max_images=self._settings["max_images"],
            packed=self._settings["packed"],
            window=settings.pack_window,
        )
        self._order_settings = settings
        self._order: AnyOrder
        most = self._settings.get("max_sequences")
        if most is not None:
            samples = even_order(list(self._samples.sizes.values()), key)
            self._order = ListedOrder(even_share(samples, lambda part: sequences(ListedOrder(part)).count(1), most))
        elif settings.shuffle == "none":
            self._order = StoredOrder(len(self._samples))
        else:
            self._order = build.order(
                split, seed=self._seed, window=settings.shuffle_window, open_shards=settings.open_shards
            )
        plan = cache_plan(build, split, settings)
        self.cache_plan = with_strays(plan, self._order, self._samples, settings.pack_window)
        self._sequences = sequences(self._order)
        self._num_batches: int | None = None

    def __len__(self) -> int:
        """Global batches of all epochs, or of one if there is no end: then an iteration continues after that.

        Each sequence is packed for it, as by `count_sequences`.
        """
        if self._num_batches is None:
            count = self.count_sequences(1 if self._epochs is None else self._epochs)
            self._num_batches = -(-count // self._batch_size)
        return self._num_batches

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
            "sequences": {**self._settings, **self._order_settings.to_json()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where another loader stopped, of any world size, workers and batch size.

        With `shuffle="shards"` the order is the saved one, also where this loader's cache has another limit. Raises
        ShardError if that was over another build, seed or kind of sequence, or by a newer release.
        """
        order = check_saved(state, self.state_dict(), self._order_settings, self._build, may_adopt=self._chose_windows)
        if order != self._order_settings:
            self._use(order)
        self._cursor = whole_number("cursor of the state", state.get("cursor"), 0)
        self._resumed = True

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the current cursor on; without a loaded state, of other splits than train from the beginning.

        Raises ShardError if a sample is damaged or a worker died. One iteration at a time: it sets the cursor.
        """
        is_train = self._settings["split"] == "train"
        refuse_workers_of_torch()
        if is_train and not self._is_split:
            refuse_ranks_of_torch()
        self._log_plan()
        if not is_train and not self._resumed:
            self._cursor = 0
        if self._epochs is not None and self._cursor >= self._epochs * len(self._order) > 0:
            logger.warning(
                "loader: its %d epochs were given out, so this iteration gives nothing; expected a Loader without "
                "epochs, or with more of them, where it is iterated again",
                self._epochs,
            )
        self._resumed = False
        with closing(self._batches()) as batches:
            for batch in batches:
                self._cursor = batch.cursor
                yield batch.pin_memory() if self._pin_memory else batch

    def _log_plan(self) -> None:
        """Say once, on the first rank, how a build is read that is larger than its cache."""
        if self.cache_plan is not None and not self._is_logged and self._rank == 0:
            logger.warning("%s: %s", self._build.store.name(self._settings["split"]), self.cache_plan.describe())
        self._is_logged = True

    def _batches(self) -> Generator[Batch]:
        requests = self._requests()
        if self._workers:
            ahead = min(self._workers * self._prefetch, self._most_ahead())
            yield from batches_ahead(
                self._reader, requests, workers=self._workers, ahead=ahead, first_alone=self._build.store.evicts
            )
            return
        blocks = LocalBlocks()
        try:
            for request in requests:
                yield Batch.of(*self._reader.fill(request, blocks.take))
        finally:
            self._reader.stop()

    def _requests(self) -> BatchRequests:
        share = self._batch_size // self._world_size
        plan, lookahead = self.cache_plan, None
        reads_ranges: RangeReads = "first" if self._build.store.evicts else "never"
        if plan is not None and (plan.by_sample or isinstance(self._order, ListedOrder)):
            reads_ranges = "always"
        elif self._build.store.evicts:
            lookahead = Lookahead(self._order, self._samples, self._sequences.size, plan, epochs=self._epochs)
        return BatchRequests(
            self._sequences,
            self._cursor,
            self._batch_size,
            self._rank * share,
            share,
            self._epochs,
            self._length,
            lookahead,
            reads_ranges,
        )

    def _most_ahead(self) -> int:
        """Batches that may be made ahead: all whose shards the cache holds, and one at least."""
        if self.cache_plan is None or self.cache_plan.by_sample or not len(self._order):
            return sys.maxsize
        epoch, in_epoch = divmod(self._cursor, len(self._order))
        start = in_epoch // self._sequences.size * self._sequences.size
        draws = min(self._sequences.size, len(self._order) - start)
        samples = self._batch_size * draws / max(len(self._sequences.window(epoch, start)), 1)
        return max(1, int(self.cache_plan.draws_ahead / 2 / samples))
