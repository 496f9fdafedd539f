"""What each batch of a rank is made of, in order. Runs in the main process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shards.loader.lookahead import Lookahead
from shards.loader.reader import BatchRequest, RangeReads
from shards.sampling.packed_sequences import PackedSequence, PackedSequences

_PAD_TO = 8  # unpacked sequences have a length that tensor cores like


@dataclass(frozen=True, slots=True)
class BatchRequests:
    """The requests of a rank, in order: of each batch the sequences from `first` on."""

    sequences: PackedSequences
    cursor: int
    batch_size: int
    first: int
    count: int
    epochs: int | None
    length: int | None
    """None pads to the longest of the global batch, so that its shape does not depend on the ranks"""
    lookahead: Lookahead | None
    """None where no shards are downloaded ahead"""
    reads_ranges: RangeReads
    """In which batches samples may be read alone"""

    def __iter__(self) -> Iterator[BatchRequest]:
        cursor = self.cursor
        reads_ranges = self.reads_ranges
        while True:
            sequences: list[PackedSequence] = []
            shards: dict[int, tuple[int, ...]] = {}
            while len(sequences) < self.batch_size:
                taken, after = self.sequences.take_from_window(
                    cursor, self.batch_size - len(sequences), epochs=self.epochs
                )
                if not taken:
                    break
                if self.lookahead and self.first - len(taken) < len(sequences) < self.first + self.count:
                    shards[max(0, len(sequences) - self.first)] = self.lookahead.shards(cursor)
                sequences += taken
                cursor = after
            if not sequences:
                return
            length = self.length or -(-self.sequences.longest(sequences) // _PAD_TO) * _PAD_TO
            sequences += [()] * (self.batch_size - len(sequences))
            own = sequences[self.first : self.first + self.count]
            reads_strays = self.lookahead is not None and self.lookahead.is_planned
            yield BatchRequest(own, length, cursor, shards, reads_strays, reads_ranges)
            if reads_ranges == "first":
                reads_ranges = "never"
