"""Samples read by their own bytes from where the build is stored, where whole shards would be much more.

For the first batch of a run, and for few samples of a large split. They are compared with their checksums as ever.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise

from shards.format.split import SplitSamples
from shards.storage.store import Store

WORTH = 0.5
"""Samples are read alone if they are at most this part of the bytes of their shards"""

SHARDS = 2
"""Up to this many shards are downloaded at once rather than read in parts"""

GAP_BYTES = 64 << 10
"""Samples that are nearer to each other come in one request, with what is between them ..."""

GAP_SHARE = 0.05
"""... which is at most this part of the samples of their shard"""

FIRST_SHARE = 0.05
"""The first batch is read sample by sample only if it is at most this part of the split, as it is sent twice then"""


def read_ranges(store: Store, split: SplitSamples, samples: Iterable[int], *, always: bool) -> dict[int, bytes]:
    """Sample -> its bytes, for samples of shards that are not on this machine.

    always: False gives none where these are few shards, or not much more than their samples. Raises ShardError if they
    cannot be read.
    """
    by_shard: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for sample in sorted(set(samples)):
        number, in_shard = split.locate(sample)
        shard = split.shard(number)
        if number in by_shard or not shard.is_local:
            by_shard[number].append((*shard.span(in_shard), sample))
    requests = [(number, *cut) for number, spans in by_shard.items() for cut in _merged(spans)]
    needed = sum(end - start for _, start, end in requests)
    if not requests:
        return {}
    whole = sum(split.info(number).size for number in by_shard)
    if not always and (len(by_shard) <= SHARDS or needed > min(WORTH * whole, FIRST_SHARE * split.size_bytes)):
        return {}
    pieces = store.ranges([(split.info(number).path, start, end) for number, start, end in requests])
    regions = {}
    for (number, first, last), piece in zip(requests, pieces, strict=True):
        for start, end, sample in by_shard[number]:
            if first <= start and end <= last:
                regions[sample] = piece[start - first : end - first]
    return regions


def _merged(spans: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """Spans in the order of their starts, joined at the smallest gaps."""
    gaps = [start - end for (_, end, _), (start, _, _) in pairwise(spans)]
    room, joined = GAP_SHARE * sum(end - start for start, end, _ in spans), set()
    for number in sorted(range(len(gaps)), key=gaps.__getitem__):
        room -= gaps[number]
        if gaps[number] > GAP_BYTES or room < 0:
            break
        joined.add(number)
    merged = [spans[0][:2]]
    for number, (start, end, _) in enumerate(spans[1:]):
        if number in joined:
            merged[-1] = merged[-1][0], end
        else:
            merged.append((start, end))
    return merged
