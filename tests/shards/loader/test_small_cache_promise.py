"""What a loader says before an epoch bounds what it downloads, within a fifth, for builds of many shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shards
import shards.storage.remote
from shards import Cache
from shards.loader import Loader
from tests.support.handmade_builds import JPEG, MAX_LENGTH, Handmade, branched_draft, draft
from tests.support.remote_builds import publish
from tests.support.small_caches import keys, size_of

pytestmark = pytest.mark.usefixtures("cache_home")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a dataset. passes: how often an epoch draws it."""

    num_shards: int
    samples: int
    image_bytes: int = 300
    passes: float = 1
    branches: int = 1


TINY = Shape(num_shards=60, samples=2)
SHAPES = {
    "tiny shards": [TINY],
    "tiny shards of several datasets": [TINY, replace(TINY, passes=2.5), replace(TINY, image_bytes=3000)],
    "many datasets, some of one shard": [
        Shape(num_shards=1 + 6 * (number % 3), samples=6 + number, passes=(0.5, 1, 2.5)[number % 3])
        for number in range(8)
    ],
    "half passes": [Shape(num_shards=20, samples=12, passes=0.55), Shape(num_shards=30, samples=6, passes=1.45)],
    "branches in small shards": [Shape(num_shards=40, samples=12, branches=4)],
    "branches, half passes": [Shape(num_shards=30, samples=40, branches=4, passes=0.5), TINY],
}


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


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of all answers."""
    answers: list[int] = []
    ask = shards.storage.remote._cat

    def counted(*arguments: Any) -> list[bytes]:
        pieces = ask(*arguments)
        answers.extend(map(len, pieces))
        return pieces

    monkeypatch.setattr(shards.storage.remote, "_cat", counted)
    return answers


@pytest.mark.parametrize("shape", SHAPES)
def test_an_epoch_downloads_what_was_said_and_a_fifth_more_at_most(
    shape: str, memory: str, tmp_path: Path, sizes: list[int]
) -> None:
    folder = make(tmp_path / "build", SHAPES[shape])
    publish(folder, memory)
    local = shards.open(folder)
    ratios = {}
    for share in (0.1, 0.25, 0.5):
        for ranks in (1, 2):
            cache = Cache(tmp_path / f"{share}-{ranks}", max_bytes=int(share * size_of(local)))
            loaders = [
                Loader(
                    shards.open(memory, cache=cache),
                    batch_size=4,
                    max_length=MAX_LENGTH,
                    decode="none",
                    epochs=1,
                    rank=rank,
                    world_size=ranks,
                )
                for rank in range(ranks)
            ]
            plan = loaders[0].cache_plan
            assert plan is not None
            sizes.clear()
            drawn = Counter(keys([batch for batches in zip(*loaders, strict=True) for batch in batches]))
            assert sum(drawn.values()) == loaders[0].epoch_length
            ratios[share, ranks] = sum(sizes) / plan.epoch_size
    assert max(ratios.values()) <= 1.2, ratios
