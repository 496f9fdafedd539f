"""Runs on builds that are larger than the cache: they resume in their order, also with another cache."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

import shards
from shards import Cache, ShardError
from tests.support import small_caches
from tests.support.small_caches import (
    loader,
    opened,
)

pytestmark = [
    pytest.mark.usefixtures("cache_home"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

folder = pytest.fixture(scope="module")(small_caches.make_folder)
location = pytest.fixture(scope="module")(small_caches.make_location)


@pytest.mark.parametrize("stop", [1, 20, 60])
def test_a_run_resumes_amid_an_epoch(location: str, tmp_path: Path, stop: int) -> None:
    build = opened(location, tmp_path)
    whole = loader(build)
    batches = iter(whole)
    for _ in range(stop):
        next(batches)
    state = whole.state_dict()
    expected = [batch.samples for batch in islice(batches, 5)]
    resumed = loader(build)
    resumed.load_state_dict(state)
    assert [batch.samples for batch in islice(resumed, 5)] == expected


def test_a_run_resumes_in_its_order_with_another_cache(location: str, folder: Path, tmp_path: Path) -> None:
    first = loader(opened(location, tmp_path / "first"))
    batches = iter(first)
    next(batches)
    state = first.state_dict()
    expected = [batch.samples for batch in islice(batches, 5)]
    unlimited = shards.open(location, cache=Cache(tmp_path / "large"))
    for build in (opened(location, tmp_path / "second", share=0.4), unlimited, shards.open(folder)):
        resumed = loader(build, shuffle="shards")
        resumed.load_state_dict(state)
        assert [batch.samples for batch in islice(resumed, 5)] == expected
        assert resumed.state_dict()["sequences"] == state["sequences"]


def test_a_run_with_enough_cache_resumes_in_its_order_with_a_small_one(location: str, tmp_path: Path) -> None:
    first = loader(shards.open(location, cache=Cache(tmp_path / "large")))
    batches = iter(first)
    next(batches)
    assert first.state_dict()["sequences"].keys().isdisjoint({"open_shards"})
    resumed = loader(opened(location, tmp_path / "small"))
    resumed.load_state_dict(first.state_dict())
    assert [batch.samples for batch in islice(resumed, 2)] == [batch.samples for batch in islice(batches, 2)]


@pytest.mark.parametrize(
    ("key", "value"),
    [("open_shards", {"alpha": 0}), ("open_shards", {"gamma": 1}), ("open_shards", 3), ("pack_window", True)],
)
def test_a_state_with_an_order_that_cannot_be_is_refused(
    location: str, tmp_path: Path, key: str, value: object
) -> None:
    first = loader(opened(location, tmp_path))
    state = first.state_dict()
    state["sequences"][key] = value
    with pytest.raises(ShardError, match=key):
        first.load_state_dict(state)


def test_windows_that_were_asked_for_stay(location: str, tmp_path: Path) -> None:
    first = loader(opened(location, tmp_path))
    asked = loader(opened(location, tmp_path), shuffle="shards", shuffle_window=100)
    assert asked.cache_plan is not None
    assert asked.cache_plan.by_sample, "a window of 100 samples is of nine shards of each dataset"
    with pytest.raises(ShardError, match="shuffle_window is None, this loader has 100"):
        asked.load_state_dict(first.state_dict())
