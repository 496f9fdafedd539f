"""Compare what a loader says before an epoch that it will download with what it does, for random builds.

    python -m tools.bench.small_cache [--builds 20] [--seed 0]

Builds of 1 to 6 datasets with 2 to 80 shards of 2 to 40 samples; some are drawn 0.5 or 2.5 times an epoch. Two in five
have branches. Each is read with caches of 0.1, 0.2, 0.35 and 0.6 of the build, by 1, 2 or 4 ranks that share the
cache, for two epochs. fsspec's memory is the storage, so nothing is measured but bytes. Prints Markdown for
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import shards
import shards.storage.remote
from shards import Cache
from shards.loader import Loader
from tests.support.remote_builds import memory_url, publish
from tests.support.shaped_builds import Shape, loaders_of, make
from tests.support.small_caches import size_of
from tools.bench.data import machine

EXPECTED = 1.2
SHARES = (0.1, 0.2, 0.35, 0.6)
MOST_SAMPLES = 1200
"""Of a dataset, so that a build takes seconds"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--builds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    ratios: dict[str, list[float]] = defaultdict(list)
    for seed in range(arguments.seed, arguments.seed + arguments.builds):
        for kind, ratio in ratios_of(random.Random(seed)):
            ratios[kind].append(ratio)
    print(f"{machine()}\n\n| read | epochs | sent, of what was said: median | most | expected |\n|---|---|---|---|---|")
    for kind, every in sorted(ratios.items()):
        print(f"| {kind} | {len(every)} | {statistics.median(every):.2f} | {max(every):.2f} | at most {EXPECTED} |")


def ratios_of(choose: random.Random) -> Iterator[tuple[str, float]]:
    """How a build is read, and what an epoch sent of what was said; for each cache and each of two epochs."""
    ranks = choose.choice([1, 1, 2, 4])
    with tempfile.TemporaryDirectory() as scratch, memory_url() as url:
        folder = make(Path(scratch) / "build", shapes_of(choose))
        publish(folder, url)
        size = size_of(shards.open(folder))
        for share in SHARES:
            cache = Cache(Path(scratch) / f"{share}", max_bytes=int(share * size))
            loaders = loaders_of(url, cache, ranks=ranks, epochs=2)
            plan = loaders[0].cache_plan
            assert plan is not None
            kind = "by samples" if plan.by_sample else "by shards, with branches" if plan.has_spread else "by shards"
            for sent in bytes_of_epochs(loaders):
                yield kind, sent / plan.epoch_size


def shapes_of(choose: random.Random) -> list[Shape]:
    most_branches = 4 if choose.random() < 0.4 else 1
    shapes = []
    for _ in range(choose.choice([1, 1, 2, 3, 6])):
        num_shards, samples = choose.choice([2, 8, 20, 40, 60, 80]), choose.choice([2, 6, 12, 40])
        shapes.append(
            Shape(
                num_shards=num_shards,
                samples=min(samples, MOST_SAMPLES // num_shards),
                image_bytes=choose.choice([0, 300, 3000]),
                passes=choose.choice([1, 1, 1, 0.5, 2.5]),
                branches=most_branches,
            )
        )
    return shapes


def bytes_of_epochs(loaders: Sequence[Loader]) -> list[int]:
    """Bytes that each epoch downloads, if all ranks read their batches at the same time."""
    ask, answers = shards.storage.remote._cat, [0]

    def counted(*arguments: Any) -> list[bytes]:
        pieces = ask(*arguments)
        answers[-1] += sum(map(len, pieces))
        return pieces

    with mock.patch.object(shards.storage.remote, "_cat", counted):
        for batches in zip(*loaders, strict=True):
            if batches[0].cursor // loaders[0].epoch_length == len(answers):
                answers.append(0)
    return answers[:-1]


if __name__ == "__main__":
    main()
