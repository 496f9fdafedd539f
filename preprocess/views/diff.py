"""`dsvl-prep diff`: everything that differs between two builds.

Rule: counts are exact. Which samples changed, and whether in images or metadata, comes from the indexes. How tokens
changed needs the samples themselves; the first `read` of each dataset are read, and the others counted as `tokens`.
Of a dataset whose samples have branches in one of the builds, records are compared instead of samples.

    print_diff(compare_builds(shards.open("build"), shards.open("build-2"), limit=20))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, zip_longest
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from dst.common.progress import Progress, Silent
from preprocess.views.diff_manifest import ManifestDifferences, compare_manifests, same_rows
from preprocess.views.diff_match import (
    I64,
    Matched,
    Samples,
    match_samples,
    read_samples,
    shared_shards,
    without_equal,
)
from preprocess.views.diff_records import has_branches, regrouped, take_apart
from preprocess.views.diff_samples import ASPECTS, SampleDifference, SamplePlace, TextReader, describe, token_aspects
from preprocess.views.member_hashes import U64
from shards import Build, ShardError
from shards.format.manifest import SPLITS

READ = 20_000
"""Samples of each dataset whose tokens are compared unless more are asked for"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetDifferences:
    """Samples, or records, of a dataset. equal, changed: in both builds. aspects: name of ASPECTS -> how many changed.

    to_eval, to_train: how many moved. regrouped: records of both builds, equal or changed, that share a sample with
    other records than before. None is the name in a build that does not have the dataset.
    """

    old_name: str | None
    new_name: str | None
    unit: Literal["samples", "records"]
    equal: int
    changed: int
    added: int
    removed: int
    aspects: Mapping[str, int]
    to_eval: int
    to_train: int
    regrouped: int

    @property
    def name(self) -> str:
        return str(self.new_name or self.old_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildDifferences:
    """samples: some of those that differ, of every kind; how many there are is in `datasets`."""

    locations: tuple[str, str]
    hashes: tuple[str, str]
    manifest: ManifestDifferences
    datasets: tuple[DatasetDifferences, ...]
    samples: tuple[SampleDifference, ...]

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.manifest) or self.num_different > 0 or any(dataset.regrouped for dataset in self.datasets)

    @property
    def num_different(self) -> int:
        """Samples, or records, that changed, were added or were removed."""
        return sum(dataset.changed + dataset.added + dataset.removed for dataset in self.datasets)

    def to_json(self) -> dict[str, Any]:
        return {
            "equal": not self,
            "locations": list(self.locations),
            "hashes": list(self.hashes),
            **self.manifest.to_json(),
            "datasets": {dataset.name: asdict(dataset) for dataset in self.datasets},
            "samples": [sample.to_json() for sample in self.samples],
        }


def compare_builds(
    old: Build, new: Build, *, limit: int = 20, read: int = READ, progress: Progress | None = None
) -> BuildDifferences:
    """All differences, with at most `limit` samples. read: changed samples of each dataset whose tokens are compared.

    Raises ShardError for a damaged index or tokenizer; a damaged sample has its fault in its place.
    """
    same_tokenizer = old.manifest.tokenizer.fingerprint == new.manifest.tokenizer.fingerprint
    folders = None if same_tokenizer else (old.tokenizer_folder(), new.tokenizer_folder())
    manifest = compare_manifests(old.manifest, new.manifest, folders)
    pair = _Pair(old, new, same_tokenizer=same_tokenizer)
    progress = progress or Silent()
    compared = [_compare(pair, names, limit, read, progress) for names in manifest.datasets]
    return BuildDifferences(
        locations=(old.store.location, new.store.location),
        hashes=(old.manifest.hash, new.manifest.hash),
        manifest=manifest,
        datasets=tuple(differences for differences, _ in compared),
        samples=tuple(_described(pair, _of_every_kind([kinds for _, kinds in compared], limit))),
    )


class _Pair:
    """The two builds; their tokenizers are opened when the first sample is read."""

    def __init__(self, old: Build, new: Build, *, same_tokenizer: bool) -> None:
        self.old, self.new = old, new
        self.shared = shared_shards(old, new)
        self._same_tokenizer = same_tokenizer
        self._readers: tuple[TextReader, TextReader] | None = None

    @property
    def readers(self) -> tuple[TextReader, TextReader]:
        """Of the old build and the new one. Raises ShardError or TokenizerError if a tokenizer cannot be read."""
        if self._readers is None:
            first = TextReader(self.old)
            self._readers = first, TextReader(self.new, first.tokenizer if self._same_tokenizer else None)
        return self._readers


@dataclass(frozen=True, slots=True, kw_only=True)
class _ToShow:
    """A sample that differs: what `describe` needs of it."""

    dataset: str
    old: SamplePlace | None
    new: SamplePlace | None
    what: tuple[str, ...]


def _compare(
    pair: _Pair, names: tuple[str | None, str | None], limit: int, read: int, progress: Progress
) -> tuple[DatasetDifferences, list[list[_ToShow]]]:
    """The differences of a dataset, and of each kind the first `limit` samples to show."""
    name = str(names[1] or names[0])
    old, new, matched, equal, unit = _matched(pair, names, progress)
    aspects = _aspects(old, new, matched, renamed=names[0] != names[1])
    _read_tokens(pair, old, new, matched, aspects, read, name, progress)
    changed = np.logical_or.reduce(list(aspects.values()))
    from_train = old.split[matched.old] == 0
    differences = DatasetDifferences(
        old_name=names[0],
        new_name=names[1],
        unit=unit,
        equal=equal + int((~changed).sum()),
        changed=int(changed.sum()),
        added=len(matched.added),
        removed=len(matched.removed),
        aspects={aspect: int(rows.sum()) for aspect, rows in aspects.items() if rows.any()},
        to_eval=int((aspects["split"] & from_train).sum()),
        to_train=int((aspects["split"] & ~from_train).sum()),
        regrouped=regrouped(old, new, matched) if unit == "records" else 0,
    )
    kinds = [
        [
            _ToShow(
                dataset=name,
                old=_place(old, matched.old[row]),
                new=_place(new, matched.new[row]),
                what=tuple(aspect for aspect, flags in aspects.items() if flags[row]),
            )
            for row in np.flatnonzero(rows)[:limit]
        ]
        for rows in aspects.values()
    ]
    kinds.append(
        [_ToShow(dataset=name, old=None, new=_place(new, row), what=("added",)) for row in matched.added[:limit]]
    )
    kinds.append(
        [_ToShow(dataset=name, old=_place(old, row), new=None, what=("removed",)) for row in matched.removed[:limit]]
    )
    return differences, kinds


def _matched(
    pair: _Pair, names: tuple[str | None, str | None], progress: Progress
) -> tuple[Samples, Samples, Matched, int, Literal["samples", "records"]]:
    """What is compared in both builds, which is which, and how many more are equal: samples, or records."""
    old, equal = read_samples(pair.old, names[0], pair.shared)
    new, _ = read_samples(pair.new, names[1], pair.shared)
    if has_branches(pair.old.manifest, names[0]) or has_branches(pair.new.manifest, names[1]):
        left, right, equal_records = without_equal(old, new)
        first = take_apart(pair.old, old, left, progress)
        second = take_apart(pair.new, new, right, progress)
        matched = match_samples(first.rows, second.rows, by_key=False, read_ids=(first.read_ids, second.read_ids))
        return first.rows, second.rows, matched, equal + equal_records, "records"
    name = names[1] or ""
    by_key = names[0] == names[1] and same_rows(pair.old.manifest, pair.new.manifest, name)
    read_ids = partial(_ids, pair.old, old, progress), partial(_ids, pair.new, new, progress)
    return old, new, match_samples(old, new, by_key=by_key, read_ids=read_ids), equal, "samples"


def _aspects(old: Samples, new: Samples, matched: Matched, *, renamed: bool) -> dict[str, npt.NDArray[np.bool_]]:
    """How the pairs differ, as far as indexes tell: aspect -> bool [pairs], in the order of ASPECTS.

    Metadata name dataset and split, so those of a renamed dataset or a moved sample differ in any case.
    """
    ours, theirs = matched.old, matched.new
    aspects = {aspect: np.zeros(len(ours), np.bool_) for aspect in ASPECTS}
    aspects["split"] = old.split[ours] != new.split[theirs]
    aspects["tokens"] = old.tokens[ours] != new.tokens[theirs]
    aspects["images"] = old.images[ours] != new.images[theirs]
    explained = aspects["split"] | aspects["tokens"] | aspects["images"]
    if not renamed:
        aspects["metadata"] = (old.metadata[ours] != new.metadata[theirs]) & ~explained
    return aspects


def _read_tokens(
    pair: _Pair,
    old: Samples,
    new: Samples,
    matched: Matched,
    aspects: Mapping[str, npt.NDArray[np.bool_]],
    read: int,
    name: str,
    progress: Progress,
) -> None:
    """Find out how tokens differ: sets text, labels, ids or damaged in place of tokens, for the first `read` pairs."""
    rows = np.flatnonzero(aspects["tokens"])[:read].tolist()
    if not rows:
        return
    first, second = pair.readers
    with progress.step(name, len(rows)) as advance:
        for row in rows:
            try:
                before = first.sample(_place(old, matched.old[row]))
                after = second.sample(_place(new, matched.new[row]))
                actual = token_aspects(before, after, first, second)
            except ShardError:
                actual = {"damaged"}
            aspects["tokens"][row] = False
            for aspect in actual:
                aspects[aspect][row] = True
            advance(1)


def _ids(build: Build, samples: Samples, progress: Progress, rows: I64) -> tuple[U64, U64]:
    """Hashes of the ids and of the sources in the metadata of samples; a damaged sample matches no other."""
    ids, sources = np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.uint64)
    with progress.step("ids", len(rows)) as advance:
        for number, row in enumerate(rows.tolist()):
            place = _place(samples, row)
            try:
                metadata = build[place.split][place.index].metadata
                values = [orjson.dumps(metadata.get(key), option=orjson.OPT_SORT_KEYS) for key in ("id", "sources")]
            except ShardError:
                values = [f"{build.manifest.hash} {place}".encode()] * 2
            ids[number], sources[number] = map(xxhash.xxh3_64_intdigest, values)
            advance(1)
    return ids, sources


def _place(samples: Samples, row: int) -> SamplePlace:
    branch = int(samples.branch[row])
    return SamplePlace(
        split=SPLITS[samples.split[row]], index=int(samples.index[row]), branch=None if branch < 0 else branch
    )


def _of_every_kind(datasets: Iterable[Iterable[Sequence[_ToShow]]], limit: int) -> list[_ToShow]:
    """Up to `limit` samples: the first of each kind of each dataset, then the second, and so on; each once."""
    kinds = [kind for dataset in datasets for kind in dataset]
    in_turn = (to_show for turn in zip_longest(*kinds) for to_show in turn if to_show is not None)
    return [*islice(dict.fromkeys(in_turn), limit)]


def _described(pair: _Pair, shown: Sequence[_ToShow]) -> Iterator[SampleDifference]:
    for to_show in shown:
        yield describe(to_show.dataset, to_show.old, to_show.new, *pair.readers, to_show.what)
