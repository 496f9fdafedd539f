"""A run over a build on S3: through which cache, in which order, and that it resumes in that order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import shards
from shards import Cache
from shards.storage.store import Room
from tests.support.remote_builds import publish
from tests.support.train_runs import compiled, config_file, folders, journal, losses, train
from trainer.config.run import load_config
from trainer.distributed.ranks import Ranks
from trainer.training.open_build import open_build, with_same_cache

pytestmark = pytest.mark.usefixtures("cache_home")

SMALL = "batch.cache_gb=0.00006"
"""60 KB: less than half of the build"""


@pytest.fixture
def url(tmp_path: Path, bucket: str) -> str:
    url = f"{bucket}/{tmp_path.name}"
    publish(compiled(tmp_path / "compiled"), url)
    return url


def test_a_run_through_a_small_cache_says_so_and_resumes_in_its_order(url: str, tmp_path: Path) -> None:
    whole = config_file(tmp_path / "whole", url)
    done = train(whole, SMALL, ranks=2)
    assert done.output.count(f"{url}/train: ") == 1
    assert "of cache: " in done.output
    first = tmp_path / "whole/out/checkpoints" / folders(tmp_path / "whole/out")[0]
    resumed = train(config_file(tmp_path / "resumed", url), f"checkpoints.resume={first}")
    assert "of cache: " not in resumed.output, "this cache holds the build"
    again = [entry["loss"] for entry in journal(tmp_path / "resumed/out") if entry["kind"] == "train"]
    assert again == pytest.approx(losses(tmp_path / "whole/out")[4:], rel=1e-4)


class OfTwo(Ranks):
    """This rank of two; the other one's disk has room for 5,000 bytes."""

    def gather(self, value: Any) -> list[Any]:
        return [value, None if value is None else Room(5000, is_set=False)]


TWO = OfTwo(rank=0, world_size=2, device=torch.device("cpu"))


def test_the_config_limits_the_cache(folder: Path, memory: str, tmp_path: Path) -> None:
    publish(folder, memory)
    config = load_config(config_file(tmp_path, memory, batch={"cache_gb": 2.5}))
    assert open_build(config).store.room() == Room(2_500_000_000, is_set=True)
    unlimited = open_build(load_config(config_file(tmp_path, memory))).store.room()
    assert unlimited is not None
    assert not unlimited.is_set


def test_ranks_read_through_caches_of_the_same_size(folder: Path, memory: str, tmp_path: Path) -> None:
    publish(folder, memory)
    assert with_same_cache(shards.open(memory), TWO).store.room() == Room(5000, is_set=True)
    alone = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    build = shards.open(memory)
    assert with_same_cache(build, alone) is build
    local = shards.open(folder)
    assert with_same_cache(local, TWO) is local


def test_ranks_whose_cache_is_set_keep_it(folder: Path, memory: str, tmp_path: Path) -> None:
    publish(folder, memory)
    limited = shards.open(memory, cache=Cache(tmp_path, max_bytes=7000))

    class Same(OfTwo):
        def gather(self, value: Any) -> list[Any]:
            return [value, value]

    assert with_same_cache(limited, Same(rank=0, world_size=2, device=torch.device("cpu"))) is limited
