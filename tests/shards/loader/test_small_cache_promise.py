"""What a loader says before an epoch bounds what it downloads, within a fifth, for builds of many shapes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import shards
import shards.storage.remote
from shards import Cache
from shards.loader import Loader
from tests.support.handmade_builds import MAX_LENGTH
from tests.support.remote_builds import publish
from tests.support.shaped_builds import Shape, loaders_of, make
from tests.support.small_caches import keys, size_of

pytestmark = pytest.mark.usefixtures("cache_home")


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
            loaders = loaders_of(memory, cache, ranks=ranks, epochs=1)
            plan = loaders[0].cache_plan
            assert plan is not None
            sizes.clear()
            drawn = Counter(keys([batch for batches in zip(*loaders, strict=True) for batch in batches]))
            assert sum(drawn.values()) == loaders[0].epoch_length
            ratios[share, ranks] = sum(sizes) / plan.epoch_size
    assert max(ratios.values()) <= 1.2, ratios


def test_indexes_that_the_cache_cannot_hold_are_counted_as_often_as_they_are_downloaded(
    memory: str, tmp_path: Path, sizes: list[int]
) -> None:
    folder = make(tmp_path / "build", [Shape(num_shards=30, samples=6)])
    publish(folder, memory)
    indexes = sum(path.stat().st_size for path in folder.glob("shards/*/*.arrow"))
    lines = {}
    for limit in (indexes // 10, indexes - 1, 2 * indexes):
        build = shards.open(memory, cache=Cache(tmp_path / str(limit), max_bytes=limit))
        loader = Loader(build, batch_size=4, max_length=MAX_LENGTH, decode="none", epochs=1, shuffle="samples")
        plan = loader.cache_plan
        assert plan is not None
        lines[limit] = plan.describe()
        sizes.clear()
        assert len(keys(list(loader))) == loader.epoch_length
        assert sum(sizes) <= 1.2 * plan.epoch_size
        assert sum(sizes) > plan.epoch_size / 4
    lacks = indexes - indexes // 10
    assert f"since the cache lacks {lacks / 1e6:,.1f} MB to keep all of them" in lines[indexes // 10]
    assert "lacks" not in lines[2 * indexes]
