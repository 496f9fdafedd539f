"""A build on S3 that is larger than the cache, for tests: made, published and opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shards
from shards import Build, Cache
from shards.loader import Batch, Loader
from tests.support.handmade_builds import JPEG, MAX_LENGTH, Draft, Handmade, draft
from tests.support.remote_builds import publish
from tests.support.s3_server import answered

SHARD = 12
IMAGE_BYTES = 4000
SAMPLES = {"alpha": 30 * SHARD, "beta": 10 * SHARD, "often": 2 * SHARD}
DRAWS = {"alpha": SAMPLES["alpha"], "beta": SAMPLES["beta"] // 2, "often": 5 * SAMPLES["often"] // 2}


def heavy(number: int, dataset: str, split: str = "train") -> Draft:
    image = JPEG + np.random.default_rng(number).bytes(IMAGE_BYTES)
    return replace(draft(number, dataset=dataset, split=split, text=8 + number % 20), images=(("jpg", image),))


def make_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixture: a build of three datasets in many small shards."""
    made = Handmade(tmp_path_factory.mktemp("remote"))
    for dataset, samples in SAMPLES.items():
        for start in range(0, samples, SHARD):
            made.add([heavy(number, dataset) for number in range(start, start + SHARD)], dataset=dataset)
    for start in range(0, 20 * SHARD, SHARD):
        made.add([heavy(number, "alpha", "eval") for number in range(start, start + SHARD)], split="eval")
    made.draws = DRAWS
    return made.finish()


def make_location(folder: Path, bucket: str) -> str:
    """A fixture: that build on the S3 server."""
    url = f"{bucket}/{folder.name}"
    publish(folder, url)
    return url


def size_of_copies(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if not file.name.startswith(".lock"))


def size_of(build: Build, split: str = "train") -> int:
    infos = [info for _, name, info in build.manifest.shards() if name == split]
    return sum(info.size + info.index_size for info in infos)


def opened(location: str, cache: Path, share: float = 0.15) -> Build:
    limit = int(share * size_of(shards.open(location)))
    build = shards.open(location, cache=Cache(cache, max_bytes=limit))
    answered()
    return build


def loader(build: Build, **settings: Any) -> Loader:
    return Loader(build, **{"batch_size": 4, "max_length": MAX_LENGTH, "decode": "none", **settings})


def sent() -> int:
    return sum(get.size for get in answered())


def keys(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for sequence in batch.samples for _, key in sequence]
