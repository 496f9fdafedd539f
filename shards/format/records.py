"""The records of a sample: what its metadata says of each, and each as a sample of its own.

Rule: a record alone has the ids, labels and images that it has in a build without `share`. So whatever reads texts or
compares samples works on records alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from shards.errors import ShardError
from shards.format.branches import Branch, branch_problems
from shards.format.container import IGNORE
from shards.format.sample import Sample
from shards.format.shard_info import ShardInfo

_OF_THE_SAMPLE = ("branches", "notes")  # of metadata; notes do not say which record they are about


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRecord:
    """A record, or what `concat` made of several. sources: (file, record) of each. branch: its tokens in the sample."""

    id: str
    sources: tuple[tuple[str, str], ...]
    references: tuple[str, ...]
    branch: Branch


def records_of(sample: Sample, image_id: int) -> list[SampleRecord]:
    """In the order of the branches; a sample without branches is one record.

    Raises ShardError if the branches, or what the metadata says of them, are not as FORMAT.md says.
    """
    check_branches(sample, image_id)
    metadata = sample.metadata
    try:
        return list(_records(metadata, sample.branches, has_branches=sample.branch_ids is not None))
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{sample.where}: its metadata is not as FORMAT.md says ({error!r}); rebuild it") from None


def alone(sample: Sample, number: int, image_id: int) -> Sample:
    """The record of a branch, counted from 0, as a sample without branches. Its metadata has no notes.

    Raises IndexError if there is no such branch, ShardError as `records_of`.
    """
    return _alone(sample, records_of(sample, image_id)[number], sample.metadata)


def each_alone(sample: Sample, image_id: int) -> list[Sample]:
    """All records of a sample, each as a sample without branches. Raises ShardError as `records_of`."""
    if sample.branch_ids is None:
        return [sample]
    metadata = sample.metadata
    return [_alone(sample, record, metadata) for record in records_of(sample, image_id)]


def records_each(shard: ShardInfo) -> npt.NDArray[np.int64]:
    """How many records each sample of a shard has, int64 [samples]: its branches, or 1."""
    return np.repeat(np.arange(1, len(shard.by_branches) + 1), shard.by_branches)


def check_branches(sample: Sample, image_id: int) -> None:
    """Raises ShardError if the branch numbers are not in order, or a branch has an image or nothing trained."""
    if sample.branch_ids is not None:
        for problem in branch_problems((sample.ids, sample.labels, sample.branch_ids), image_id, IGNORE):
            raise ShardError(f"{sample.where}: {problem}; rebuild it, or see dsvl-prep verify")


def _alone(sample: Sample, record: SampleRecord, metadata: Mapping[str, Any]) -> Sample:
    own = {key: value for key, value in metadata.items() if key not in _OF_THE_SAMPLE}
    if sample.branch_ids is not None:
        own |= {"id": record.id, "sources": [{"file": file, "record": name} for file, name in record.sources]}
        if own.pop("references", None) and record.references:
            own["references"] = [record.references]
    tokens = np.stack([record.branch.of(sample.ids), record.branch.of(sample.labels)])
    return Sample(
        sample.shard, sample.key, memoryview(orjson.dumps(own)), tokens, sample.images, grids=sample.stated_grids
    )


def _records(metadata: Mapping[str, Any], branches: Sequence[Branch], *, has_branches: bool) -> Iterator[SampleRecord]:
    sources = [(str(source["file"]), str(source["record"])) for source in metadata["sources"]]
    references = metadata.get("references") or []
    if not has_branches:
        every = tuple(str(text) for of_one in references for text in of_one)
        yield SampleRecord(id=str(metadata["id"]), sources=tuple(sources), references=every, branch=branches[0])
        return
    named = metadata["branches"]
    if sum(int(each["records"]) for each in named) != len(sources):
        raise ValueError("the records of its branches are not its sources")
    start = 0
    for each, own, branch in zip(named, references or [[]] * len(named), branches, strict=True):
        end = start + int(each["records"])
        yield SampleRecord(
            id=str(each["id"]), sources=tuple(sources[start:end]), references=tuple(map(str, own)), branch=branch
        )
        start = end
