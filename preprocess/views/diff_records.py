"""Datasets with `share`, compared record by record: another `share`, or a new record, puts records into other samples.

Indexes tell which samples are equal in both builds. All others are read and taken apart. A record is hashed as it is
alone, so it is found again in any sample, or as a sample of its own.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
import orjson
import xxhash

from dst.common.progress import Progress
from preprocess.views.diff_match import I64, Matched, Samples
from preprocess.views.member_hashes import U64
from shards import Build, Manifest, Sample, ShardError
from shards.format.manifest import SPLITS
from shards.format.records import each_alone

_NOT_OF_A_RECORD = ("dataset", "split", "notes", "branches")
"""Of metadata; notes are about a whole sample"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """rows: the records of samples. ids, sources: hashes of what their metadata say, uint64 [records]."""

    rows: Samples
    ids: U64
    sources: U64

    def read_ids(self, rows: I64) -> tuple[U64, U64]:
        """As diff_match.match_samples asks for them."""
        return self.ids[rows], self.sources[rows]


def has_branches(manifest: Manifest, dataset: str | None) -> bool:
    """Whether a sample of the dataset has branches; None is a dataset that the build does not have."""
    return dataset is not None and any(shards.has_branches for shards in manifest.datasets[dataset].shards.values())


def take_apart(build: Build, samples: Samples, rows: I64, progress: Progress) -> Records:
    """The records of samples, which are read. A sample that is damaged stays one row, and matches no other."""
    image_id = build.manifest.tokenizer.image_id
    places, hashes = array("q"), array("Q")  # a million records take 80 MB
    with progress.step("records", len(rows)) as advance:
        for row in rows.tolist():
            split, index, images = int(samples.split[row]), int(samples.index[row]), int(samples.images[row])
            try:
                sample = build[SPLITS[split]][index]
                records = [_hashes(record) for record in each_alone(sample, image_id)]
                for number, hashed in enumerate(records, start=-1 if sample.branch_ids is None else 0):
                    places.extend((split, index, number, len(records)))
                    hashes.extend((*hashed, images))
            except ShardError:
                unique = xxhash.xxh3_64_intdigest(f"{build.manifest.hash} {split} {index}".encode())
                places.extend((split, index, -1, 1))
                hashes.extend((unique, unique, unique, unique, int(samples.tokens[row]), images))
            advance(1)
    place_columns = np.array(places).reshape(-1, 4).T
    ids, sources, key, metadata, tokens, shown = np.array(hashes).reshape(-1, 6).T
    return Records(
        rows=Samples(
            split=place_columns[0].astype(np.uint8),
            index=place_columns[1],
            branch=place_columns[2],
            records=place_columns[3],
            key=key,
            metadata=metadata,
            tokens=tokens,
            images=shown,
        ),
        ids=ids,
        sources=sources,
    )


def regrouped(old: Samples, new: Samples, matched: Matched) -> int:
    """How many records of both builds are in samples with other records than before."""
    pairs = np.stack([_sample_of(old)[matched.old], _sample_of(new)[matched.new]], axis=1)
    _, which, counts = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    together = counts[which.reshape(-1)]
    return int(((together != old.records[matched.old]) | (together != new.records[matched.new])).sum())


def _sample_of(rows: Samples) -> I64:
    return rows.index * len(SPLITS) + rows.split


def _hashes(record: Sample) -> tuple[int, ...]:
    """Of the id, the sources, both together, the metadata and the tokens."""
    metadata = {key: value for key, value in record.metadata.items() if key not in _NOT_OF_A_RECORD}
    tokens = xxhash.xxh3_64(record.ids.tobytes())
    tokens.update(record.labels.tobytes())
    identity = [metadata.get(key) for key in ("id", "sources")]
    return *map(_hash, (*identity, identity, metadata)), tokens.intdigest()


def _hash(value: object) -> int:
    return xxhash.xxh3_64_intdigest(orjson.dumps(value, option=orjson.OPT_SORT_KEYS))
