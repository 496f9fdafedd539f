"""Samples with branches: what is written comes back, and what is not as the format says is found."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

import shards
from shards import ShardError
from shards.format.branches import branches_of, join_branches
from shards.format.manifest_file import manifest_hash, manifest_text
from tests.support.handmade_builds import (
    IGNORE,
    IMAGE_ID,
    Draft,
    Handmade,
    branched_draft,
    draft,
    problems,
)

RECORDS = st.integers(1, 4).flatmap(
    lambda beginning: st.lists(
        st.lists(st.integers(10, 99), min_size=1, max_size=5).map(lambda own: [7] * beginning + own), min_size=2
    ).map(lambda records: (beginning, records))
)


@given(RECORDS)
def test_each_record_has_the_tokens_that_went_in(case: tuple[int, list[list[int]]]) -> None:
    beginning, records = case
    labels = [[IGNORE] * beginning + record[beginning:] for record in records]
    pairs = [np.array(pair, np.int32) for pair in zip(records, labels, strict=True)]
    ids, joined_labels, numbers = join_branches(pairs, beginning)
    assert len(ids) == beginning + sum(len(record) - beginning for record in records)
    branches = branches_of(numbers, len(ids))
    assert [branch.of(ids).tolist() for branch in branches] == records
    assert [branch.of(joined_labels).tolist() for branch in branches] == labels


def build_of(folder: Path, drafts: list[Draft]) -> Path:
    build = Handmade(folder, draws={"alpha": 0})
    build.add(drafts)
    return build.finish()


def test_a_build_with_branches_is_sound_and_of_version_2(tmp_path: Path) -> None:
    folder = build_of(tmp_path, [branched_draft(number, branches=1 + number // 2) for number in range(6)])
    assert problems(folder) == []
    build = shards.open(folder)
    assert json.loads((folder / "manifest.json").read_bytes())["version"] == 2
    assert build.manifest.has_branches
    infos = build.manifest.datasets["alpha"].shards["train"]
    assert infos[0].branches == (2, 2, 2)
    assert (infos.records, infos.by_branches) == (12, [(2, 2, 2)])
    assert [len(sample.branches) for sample in build["train"]] == [1, 1, 2, 2, 3, 3]
    text, images, _ = build["train"].counts(np.arange(6))
    assert text.tolist() == [5, 5, 9, 9, 13, 13], "the beginning is counted once"
    assert images.tolist() == [1] * 6


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves closing the file to the garbage collector
def test_webdataset_reads_the_samples_with_their_branch_numbers(tmp_path: Path) -> None:
    folder = build_of(tmp_path, [branched_draft(0, branches=2)])
    (info,) = shards.open(folder).manifest.datasets["alpha"].shards["train"]
    (sample,) = webdataset.WebDataset(str(folder / info.path), shardshuffle=False).decode()
    assert sample["tokens.npy"].shape == (3, 10)
    assert sample["tokens.npy"][2].tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert [branch["id"] for branch in sample["json"]["branches"]] == ["record 0-0", "record 0-1"]


def changed(sample: Draft, row: int, place: int, value: int) -> Draft:
    tokens = sample.tokens.copy()
    tokens[row, place] = value
    return replace(sample, tokens=tokens, trained_tokens=int((tokens[1] != IGNORE).sum()))


SOUND = branched_draft(3, branches=2)
FAULTS: dict[str, tuple[Draft, str]] = {
    "no beginning": (changed(changed(SOUND, 2, 0, 1), 2, 1, 1), "branch numbers are not 0, 1, 2"),
    "a beginning alone": (
        replace(SOUND, tokens=SOUND.tokens * np.array([[1], [1], [0]], np.int32)),
        "sample alpha-train-00003: its branch numbers are not 0, 1, 2",
    ),
    "a step back": (changed(SOUND, 2, 3, 0), "branch numbers are not 0, 1, 2"),
    "an image in a branch": (
        changed(changed(SOUND, 0, 0, 7), 0, 2, IMAGE_ID),
        "one of its branches has an image placeholder",
    ),
    "a trained beginning": (changed(SOUND, 1, 1, 7), "a token of its common beginning is trained"),
    "nothing trained": (
        changed(changed(SOUND, 1, 9, IGNORE), 1, 8, IGNORE),
        "nothing in one of its branches is trained",
    ),
    "unnamed branches": (
        replace(SOUND, metadata={key: value for key, value in SOUND.metadata.items() if key != "branches"}),
        "its metadata does not name each of its branches",
    ),
    "a branch without a number of records": (
        replace(SOUND, metadata={**SOUND.metadata, "branches": [{"id": "a", "records": 1}, {"id": "b"}]}),
        "sample alpha-train-00003: its metadata does not name each of its branches",
    ),
    "references for one branch of two": (
        replace(SOUND, metadata={**SOUND.metadata, "references": [["a cat"]]}),
        "its references are not a list for each of its branches",
    ),
    "another number of records": (
        replace(SOUND, metadata={**SOUND.metadata, "sources": SOUND.metadata["sources"][:1]}),
        "its branches have other numbers of records than it has sources",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_verify_finds_branches_that_are_not_as_the_format_says(tmp_path: Path, name: str) -> None:
    sample, problem = FAULTS[name]
    found = problems(build_of(tmp_path, [sample]))
    assert any(problem in text for text in found), found


def edit(folder: Path, branches: list[int] | None, version: int = 2) -> None:
    document = json.loads((folder / "manifest.json").read_bytes())
    (info,) = document["datasets"]["alpha"]["shards"]["train"]
    info["branches"] = branches
    document["version"] = version
    document["hash"] = manifest_hash(document)
    (folder / "manifest.json").write_bytes(manifest_text(document))


@pytest.mark.parametrize(
    ("branches", "version", "problem"),
    [
        ([1], 2, "numbers of samples with 1, 2, ... branches, 2 together"),
        ([1, 0], 2, "numbers of samples with 1, 2, ... branches, 2 together"),
        ([0, 1, 0, 2], 2, "numbers of samples with 1, 2, ... branches, 2 together"),
        ([0, -1, 3], 2, "expected a whole number from 0 on"),
        ([0, 1, 1], 1, "has samples with branches, but is of format version 1, which has none; rebuild it"),
        ([0, 0, 2], 2, "has 2 branches, the manifest says 3 of the sample there"),
        (None, 2, "has 2 branches, the manifest says 1 of the sample there"),
    ],
)
def test_a_manifest_that_counts_branches_otherwise_is_refused_or_found(
    tmp_path: Path, branches: list[int] | None, version: int, problem: str
) -> None:
    folder = build_of(tmp_path, [branched_draft(number, branches=2 + number) for number in range(2)])
    edit(folder, branches, version)
    assert any(problem in text for text in problems(folder)), problems(folder)


def test_the_loader_refuses_branches_that_are_not_in_order(tmp_path: Path) -> None:
    torch_loader = pytest.importorskip("shards.loader")
    folder = build_of(tmp_path, [FAULTS["a step back"][0]])
    loader = torch_loader.Loader(
        shards.open(folder), batch_size=1, max_length=64, epochs=1, decode="none", shuffle="none"
    )
    with pytest.raises(ShardError, match=r"sample alpha-train-00003: its branch numbers are not 0, 1, 2.* verify"):
        next(iter(loader))


@pytest.mark.parametrize("draws", [1, 7, 23, 60, 61, 130])
def test_an_epoch_draws_exactly_as_many_records_as_the_manifest_says(tmp_path: Path, draws: int) -> None:
    build = Handmade(tmp_path, draws={"alpha": draws, "beta": 5})
    build.add([branched_draft(number, branches=1 + number // 3) for number in range(12)])
    build.add([branched_draft(number, branches=2) for number in range(12, 27)])
    build.add([draft(number, dataset="beta") for number in range(4)], dataset="beta")
    opened = shards.open(build.finish())
    split, order = opened["train"], opened.order(seed=3)
    records = [len(sample.branches) for sample in split]
    total = sum(records[:27])
    drawn = Counter[int]()
    for epoch in range(4):
        samples = order.samples(epoch, 0, len(order)).tolist()
        of_alpha = [number for number in samples if number < 27]
        assert sum(records[number] for number in of_alpha) == draws
        assert len(samples) - len(of_alpha) == 5
        drawn.update(of_alpha)
    for count in set(records[:27]):
        times = [drawn[number] for number in range(27) if records[number] == count]
        assert max(times) - min(times) <= 1, "samples with equally many records are drawn equally often"
    assert total == 60


def test_a_sample_of_an_order_with_branches_is_found_where_it_is_drawn(tmp_path: Path) -> None:
    build = Handmade(tmp_path, draws={"alpha": 30})
    build.add([branched_draft(number, branches=1 + number // 2) for number in range(6)])
    build.add([branched_draft(number, branches=1 + number % 6 // 3) for number in range(6, 12)])
    order = shards.open(build.finish()).order(seed=1)
    samples = order.samples(2, 0, len(order)).tolist()
    assert [order.draw_of(2, sample) for sample in range(12)] == [
        samples.index(sample) if sample in samples else None for sample in range(12)
    ]
