"""From the numbers of samples to a batch in a block of memory: what a loader's worker does. It needs no torch.

Rule: every array is written once, where it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shards.build import Build
from shards.errors import ImageError, ShardError
from shards.format.sample import Sample
from shards.format.sample_ranges import read_ranges
from shards.images.decode import DECODERS
from shards.images.tiles import ONE_TILE, Grid
from shards.loader.collate import collate
from shards.loader.downloads import Downloads
from shards.loader.fields import BatchFields
from shards.loader.layout import Contents, Memory
from shards.sampling.packed_sequences import PackedSequence

RangeReads = Literal["never", "first", "always"]


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A rank's sequences of one global batch, and the cursor after the batch."""

    sequences: list[PackedSequence]
    length: int
    """Tokens of every sequence"""
    cursor: int
    shards: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """From which sequence on -> the shards that it and the next ones need"""
    reads_strays: bool = False
    """Whether samples of other shards than `shards` are read alone"""
    reads_ranges: RangeReads = "never"
    """Whether samples of shards that are not on this machine are read alone: `first` only if that is much less"""


class BatchReader:
    """Reads, collates and decodes."""

    def __init__(self, build: Build, split: str, decode: str) -> None:
        self._split = build[split]
        self._image_tokens = build.manifest.config.image_tokens
        self._image_id = build.manifest.tokenizer.image_id
        self._geometry = build.manifest.config.image
        self._has_tiles = self._split.has_tiles
        self._is_canvas = build.manifest.config.stores_canvases
        self._decode = decode
        self._store = build.store
        self._downloads = Downloads(build.store, self._split)

    def stop(self) -> None:
        """Begin no further download."""
        self._downloads.stop()

    def fill(self, request: BatchRequest, allocate: Callable[[int], Memory]) -> tuple[Contents, Memory]:
        """A batch in the memory that `allocate` gives for its size. Raises ShardError."""
        named = list(self._read(request))
        sequences = [[sample for _, sample in sequence] for sequence in named]
        stored = [
            (number, image)
            for numbers, sequence in zip(request.sequences, sequences, strict=True)
            for number, sample in zip(numbers, sequence, strict=True)
            for image in sample.images
        ]
        grids = None
        if self._has_tiles:
            grids = tuple(grid for sequence in sequences for sample in sequence for grid in sample.grids)
        raw = self._decode == "none"
        contents = Contents(
            shape=(len(sequences), request.length),
            side=self._geometry.size,
            num_tiles=len(stored) if grids is None else sum(grid.tiles for grid in grids),
            grids=grids,
            stored_sizes=tuple(len(image) for _, image in stored) if raw else None,
            samples=tuple(tuple((dataset, sample.key) for dataset, sample in sequence) for sequence in named),
            cursor=request.cursor,
        )
        memory = _allocated(contents.size, allocate)
        arrays: BatchFields[Any] = contents.arrays(memory)
        collate(sequences, arrays, image_id=self._image_id, image_tokens=self._image_tokens)
        if raw:
            files = contents.stored_bytes(memory)
            np.concatenate([np.frombuffer(image, np.uint8) for _, image in stored] or [files], out=files)
        else:
            self._decode_all(stored, grids or (ONE_TILE,) * len(stored), arrays.images.transpose(0, 2, 3, 1))
        return contents, memory

    def _read(self, request: BatchRequest) -> Iterator[list[tuple[str, Sample]]]:
        """The samples of each sequence, with their datasets."""
        starts = sorted(request.shards) if request.reads_ranges == "never" and request.shards else [0]
        for start, end in zip(starts, [*starts[1:], len(request.sequences)], strict=True):
            sequences = request.sequences[start:end]
            regions = self._read_alone(request, sequences, request.shards.get(start, ()))
            for sequence in sequences:
                yield [self._split.named(sample, regions.get(sample)) for sample in sequence]
        if request.shards:
            self._downloads.drop({self._split.locate(sample)[0] for sample in chain.from_iterable(request.sequences)})

    def _read_alone(
        self, request: BatchRequest, sequences: Sequence[PackedSequence], shards: tuple[int, ...]
    ) -> dict[int, bytes]:
        """Samples that come without their shards; those of all others are downloaded in the order of `shards`."""
        samples = list(chain.from_iterable(sequences))
        if request.reads_ranges != "never":
            return read_ranges(self._store, self._split, samples, always=request.reads_ranges == "always")
        self._downloads.follow(shards)
        if not request.reads_strays:
            return {}
        strays = [sample for sample in samples if self._split.locate(sample)[0] not in shards]
        return read_ranges(self._store, self._split, strays, always=True)

    def _decode_all(
        self, stored: Sequence[tuple[int, memoryview]], grids: Sequence[Grid], pixels: npt.NDArray[np.uint8]
    ) -> None:
        """stored: images, each with its sample's number. pixels: uint8 [N, S, S, 3]."""
        decode, end = DECODERS[self._decode], 0
        for (number, image), grid in zip(stored, grids, strict=True):
            start, end = end, end + grid.tiles
            try:
                decode(image, self._geometry, pixels[start:end], grid, is_canvas=self._is_canvas)
            except ImageError as error:
                raise ShardError(f"{self._split.where(number)}: an image cannot be decoded: {error}") from None


def _allocated(size: int, allocate: Callable[[int], Memory]) -> Memory:
    try:
        return allocate(size)
    except (MemoryError, OSError) as error:
        raise ShardError(
            f"loader: no memory for {size:,} bytes of a batch ({error}); use fewer workers, or prefetch less"
        ) from None
