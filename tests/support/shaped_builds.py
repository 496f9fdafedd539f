"""Builds of any shape: datasets of few or many shards, tiny or not, with branches or without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import shards
from shards import Cache
from shards.loader import Loader
from tests.support.handmade_builds import JPEG, MAX_LENGTH, Handmade, branched_draft, draft


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a dataset. samples: of each shard. passes: how often an epoch draws it. branches: most of a sample."""

    num_shards: int
    samples: int
    image_bytes: int = 300
    passes: float = 1
    branches: int = 1


def make(folder: Path, shapes: Sequence[Shape]) -> Path:
    made = Handmade(folder)
    for place, shape in enumerate(shapes):
        name, records = f"d{place}", 0
        for shard in range(shape.num_shards):
            random = np.random.default_rng([place, shard])
            branches = sorted(random.integers(1, shape.branches + 1, shape.samples).tolist())
            first = shard * shape.samples
            drafts = [
                draft(first + number, dataset=name, text=8 + number % 20)
                if shape.branches == 1
                else branched_draft(first + number, dataset=name, branches=count)
                for number, count in enumerate(branches)
            ]
            made.add(
                [replace(each, images=(("jpg", JPEG + random.bytes(shape.image_bytes)),)) for each in drafts],
                dataset=name,
            )
            records += sum(branches)
        made.draws[name] = int(records * shape.passes)
    return made.finish()


def loaders_of(url: str, cache: Cache, *, ranks: int, epochs: int) -> list[Loader]:
    """One for each rank, as on a machine whose ranks share a cache."""
    return [
        Loader(
            shards.open(url, cache=cache),
            batch_size=4,
            max_length=MAX_LENGTH,
            decode="none",
            epochs=epochs,
            rank=rank,
            world_size=ranks,
        )
        for rank in range(ranks)
    ]
