"""A build whose split has samples in many small shards, and the content that its samples have."""

from __future__ import annotations

from pathlib import Path

import shards
from shards import Build, Sample, SplitSamples
from tests.support import handmade_builds
from tests.support.handmade_builds import Draft, draft

TRAIN = {
    "alpha": [
        [draft(number, num_images=number % 4) for number in range(4)],
        [draft(number, num_images=number % 4) for number in range(4, 5)],
        [draft(number, num_images=2) for number in range(5, 11)],
    ],
    "without_train": [],
    "beta": [[draft(number, dataset="beta", num_images=0) for number in range(3)]],
    "gamma": [[draft(number, dataset="gamma", text=30)] for number in range(3)],
}
SHARDS = [made for of_dataset in TRAIN.values() for made in of_dataset]
DRAFTS = [one for made in SHARDS for one in made]
NAMES = [name for name, of_dataset in TRAIN.items() for made in of_dataset for _ in made]


def make_build(tmp_path: Path) -> Build:
    """A fixture: four datasets, of which one has nothing to train on and one nothing held out."""
    made = handmade_builds.Handmade(tmp_path)
    for dataset, of_dataset in TRAIN.items():
        for drafts in of_dataset:
            made.add(drafts, dataset=dataset)
        if dataset != "beta":
            made.add(
                [draft(number, dataset=dataset, split="eval") for number in range(2)], dataset=dataset, split="eval"
            )
    return shards.open(made.finish())


def train_split(build: Build) -> SplitSamples:
    """A fixture."""
    return build["train"]


def content(sample: Sample) -> tuple[str, list[int], list[int], list[bytes]]:
    return sample.key, sample.ids.tolist(), sample.labels.tolist(), [bytes(image) for image in sample.images]


def stored(one: Draft) -> tuple[str, list[int], list[int], list[bytes]]:
    return one.key, one.tokens[0].tolist(), one.tokens[1].tolist(), [data for _, data in one.images]


def read_all(split: SplitSamples) -> list[tuple[str, list[int], list[int], list[bytes]]]:
    return [content(sample) for sample in split]
