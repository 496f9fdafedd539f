"""What becomes of the first records of a dataset: their forms, names and rejects, the filter, their split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from preprocess.adapters.base import Request, Tally
from preprocess.blend.config import Blend, Dataset
from preprocess.compiler.ingest import filtered
from preprocess.compiler.report import counts_text
from preprocess.compiler.unknown_names import check_fields, unused_names
from preprocess.conversation import Conversation, Records, Reject
from preprocess.errors import DataError


@dataclass(slots=True)
class Sampled:
    """Counts over the first records, by what became of them."""

    records: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    with_images: int = 0
    """Conversations that show images"""
    image_sets: set[int] = field(default_factory=set)
    """Hashes of the images of each"""

    def count(self, records: Records, dataset: Dataset) -> Iterator[Conversation | Reject]:
        """The records after the dataset's filter, counted."""
        rules = dataset.filter
        kept = filtered(records, rules, self.filtered) if rules and rules.has_record_rules else records
        for item in kept:
            if isinstance(item, Reject):
                self.records += 1
                self.rejects[item.reason] += 1
            else:
                self.records += len(item.sources)
                self.splits[item.official_split or "none"] += len(item.sources)
                self.with_images += bool(item.images)
                self.image_sets |= {hash(item.images)} if item.images else set()
            yield item


def summary(sampled: Sampled, request: Request, blend: Blend, dataset: Dataset) -> Iterator[str]:
    """A line for each thing that there is to say."""
    tally = request.tally
    if tally.forms:
        yield f"forms: {counts_text(tally.forms)}"
    yield from _names(sampled, tally, dataset)
    if tally.ignored_keys:
        yield f"ignored keys: {counts_text(tally.ignored_keys)}"
    if sampled.rejects:
        yield f"rejects: {counts_text(sampled.rejects)} of {sampled.records:,} records"
    yield from _filter(sampled, tally, dataset)
    if dataset.split is not None:
        yield f"split: {dataset.split}, for all records"
    elif {*sampled.splits} - {"none"}:
        used = "ignored (split.official)" if blend.split.official == "ignore" else "val and test go to eval"
        yield f"official split: {counts_text(sampled.splits)}; {used}"
    if dataset.share > 1:
        sets = f"{sampled.with_images:,} with images show {len(sampled.image_sets):,} different sets of them"
        yield f"share: up to {dataset.share:,} conversations with the same images become one sample; {sets}"
    if dataset.prompt is not None:
        yield f"prompt after each question: {dataset.prompt}"


def _names(sampled: Sampled, tally: Tally, dataset: Dataset) -> Iterator[str]:
    named = [f"{theirs} is {ours}" for theirs, ours in dataset.all_keys.items() if ours is not None]
    left_out = [theirs for theirs, ours in dataset.all_keys.items() if ours is None]
    if named:
        yield f"keys: {', '.join(named)}"
    if left_out:
        yield f"keys left out: {', '.join(left_out)}"
    if dataset.roles:
        yield f"roles: {', '.join(f'{theirs} is {ours}' for theirs, ours in dataset.roles.items())}"
    if sampled.records and (unused := unused_names(tally, dataset.all_keys, dataset.roles)):
        yield f"in none of these records: {', '.join(unused)}"


def _filter(sampled: Sampled, tally: Tally, dataset: Dataset) -> Iterator[str]:
    if dataset.filter is None:
        return
    yield f"filter: {'; '.join(dataset.filter.lines())}"
    dropped = sum(sampled.filtered.values())
    which = f": {counts_text(sampled.filtered)}" if dropped else ""
    yield f"filter drops {dropped:,} of {sampled.records:,} records{which}"
    try:
        check_fields(tally, tuple(dataset.filter.fields))
    except DataError as error:
        yield f"of these records: {error}"
