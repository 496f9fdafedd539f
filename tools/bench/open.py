"""Measure how opening a build and its first sample depend on the number of samples.

    python -m tools.bench.open [--scratch FOLDER] [--repeats 9]

Builds of 10 thousand and of 10 million text samples, in shards of 8,192 as the compiler cuts them. The big one's tars
are links to one file, its indexes (1.6 GB) are files of their own. Each measurement is a new process with a seed of its
own, so that the first sample is now in a whole shard, now in a rest; files were just written and come from the page
cache. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from tools.bench.data import ROOT, machine

sys.path.insert(0, str(ROOT))

from preprocess.images.prepare import ImagePolicy
from shards import ShardInfo, ShardWriter
from shards.format.manifest import BuildConfig, DatasetInfo, Manifest, TokenizerInfo
from shards.format.manifest_file import write_manifest
from shards.format.shard_info import ShardList
from shards.typed_json import from_json

SHARD = 8192
SIZES = {"10 thousand": 10_000, "10 million": 10_000_000}
TIMED = """
import resource, sys, time
start = time.perf_counter()
import shards
from shards.loader import Loader
path, seed = sys.argv[1], int(sys.argv[2])
imported = time.perf_counter()
build = shards.open(path)
build["train"][build.order(seed=seed).sample_at(0)]
sample = time.perf_counter()
next(iter(Loader(build, batch_size=8, max_length=4096, decode="none", seed=seed)))
batch = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
import json
print(json.dumps({"import": imported - start, "sample": sample - imported, "batch": batch - sample, "peak": peak}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="a folder on a local disk with 2 GB to spare")
    parser.add_argument("--repeats", type=int, default=9, help="processes for each build; medians count")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        print(machine(), "\n")
        print("| samples | shards | import | open and first sample | first packed batch | peak memory |")
        print("|---|---|---|---|---|---|")
        for title, samples in SIZES.items():
            folder = Path(scratch) / title.replace(" ", "-")
            shards = make_build(folder, samples)
            measured = [timed(folder, seed) for seed in range(-1, arguments.repeats)][1:]  # the first warms up imports
            medians = {key: statistics.median(one[key] for one in measured) for key in measured[0]}
            times = " | ".join(f"{medians[key] * 1e3:,.1f} ms" for key in ("import", "sample", "batch"))
            print(f"| {title} | {shards:,} | {times} | {medians['peak'] / 1e6:,.0f} MB |", flush=True)


def make_build(folder: Path, samples: int) -> int:
    """A build of text samples; returns its number of shards."""
    whole = write_shard(folder, 0, SHARD)
    infos = [whole]
    for number in range(1, samples // SHARD):
        stem = f"shards/bench/train-{number:05d}-{whole.path[-12:-4]}"
        os.link(folder / whole.path, folder / f"{stem}.tar")
        shutil.copyfile(folder / whole.index, folder / f"{stem}.arrow")
        infos.append(replace(whole, path=f"{stem}.tar", index=f"{stem}.arrow"))
    infos.append(write_shard(folder, len(infos), samples % SHARD))
    write_manifest(folder, manifest(infos))
    return len(infos)


def manifest(infos: list[ShardInfo]) -> Manifest:
    config = {
        "datasets": [{"name": "bench"}],
        "template": "bench",
        "variables": {},
        "image_tokens": 256,
        "limits": {"max_length": 4096, "max_images": 8},
        "image": dataclasses.asdict(ImagePolicy()),
    }
    samples, tokens = sum(info.samples for info in infos), sum(info.text_tokens for info in infos)
    dataset = DatasetInfo(
        adapter="bench",
        template="bench",
        records=samples,
        members=samples,
        samples=samples,
        splits={"train": samples, "eval": 0},
        images=0,
        tokens=tokens,
        trained_tokens=tokens,
        share=1.0,
        draws=samples,
        rejects={},
        notes={},
        absent=(),
        inputs=(),
        shards={"train": ShardList(infos), "eval": ShardList()},
    )
    return Manifest(
        dsvl="bench",
        compiler=1,
        libraries={},
        config=from_json(BuildConfig, config, "config"),
        template="bench",
        tokenizer=TokenizerInfo(fingerprint="", vocabulary_size=8, image_id=1, bos_token="", eos_token=""),
        datasets={"bench": dataset},
        files={},
    )


def write_shard(folder: Path, number: int, samples: int) -> ShardInfo:
    """Samples of 50 to 450 tokens."""
    lengths = np.random.default_rng(number).integers(50, 450, samples).tolist()
    writer = ShardWriter(folder, "shards/bench", f"train-{number:05d}")
    for row, length in enumerate(lengths):
        tokens = np.full((2, length), 7, np.int32)
        key = f"bench-{number:05d}-{row:05d}"
        writer.add(key, metadata={"id": key}, tokens=tokens, images=(), trained_tokens=length, groups=())
    info = writer.finish()
    assert info is not None
    return info


def timed(folder: Path, seed: int) -> dict[str, float]:
    """Seconds, and the peak of resident memory in bytes."""
    command = [sys.executable, "-c", TIMED, str(folder), str(seed)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    report: dict[str, float] = json.loads(done.stdout)
    return report


if __name__ == "__main__":
    main()
