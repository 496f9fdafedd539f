"""Measure epochs of the loader from S3 against the same build on a local disk, all in one run.

    python -m tools.bench.remote [--scratch FOLDER] [--samples 2000] [--shards 64] [--workers 2] [--repeats 3]
                                 [--decode exact]

The S3 server (tools.bench.s3_sink) runs on this machine and shares its cores. Records as in tools.bench.loader. Each
epoch is a new process: local; cold, with an empty cache that holds everything; cached, the same again; cold through
s3fs alone, without signed URLs; and with an empty cache of a tenth of the build. What the server sent is counted there.
Medians; a ratio is of two epochs of one repeat.
`--decode none --workers 0` reads alone, in one process: then CPU seconds count, which the server does not change.
Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from tests.support.remote_builds import publish
from tests.support.s3_server import answered
from tools.bench.data import ROOT, machine, make_images
from tools.bench.s3_sink import s3_sink

ANSWER_WORDS = 24
SMALL = 0.1
"""The small cache, of the build's bytes"""

EPOCH = """
import json, sys, time
from pathlib import Path
import shards
from shards.loader import Loader
from shards.storage import signed_requests
if __name__ == "__main__":
    location, cache, limit, workers, decode, signed = json.loads(sys.argv[1])
    signed_requests.FAILURES = signed_requests.FAILURES if signed else 0
    build = shards.open(location, cache=shards.Cache(Path(cache), max_bytes=limit))
    start, cpu = time.perf_counter(), time.process_time()
    settings = {"shuffle": "shards"} if limit is None and "://" not in location else {}
    loader = Loader(build, batch_size=16, max_length=4096, workers=workers, epochs=1, decode=decode, **settings)
    samples, first = 0, None
    for batch in loader:
        first = first or time.perf_counter() - start
        samples += batch.num_records
    seconds = time.perf_counter() - start
    cpu = time.process_time() - cpu
    print(json.dumps({"rate": samples / seconds, "first": first, "samples": samples, "cpu": cpu}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="a folder on a local disk")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--decode", choices=("exact", "none"), default="exact")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch, s3_sink(keeps_all=True) as bucket:
        print(f"{machine()}\n")
        folder, url = Path(scratch), f"{bucket}/bench"
        make_images(folder / "data", arguments.samples, ANSWER_WORDS)
        size = make_build(folder, url, -(-arguments.samples // arguments.shards))
        rows: dict[str, list[tuple[float, ...]]] = {}
        for _ in range(arguments.repeats):
            local: dict[str, float] = {}
            for name, location, cache, limit, signed in (
                ("local", str(folder / "build"), "none", None, True),
                ("cold", url, "cold", None, True),
                ("cached", url, "cold", None, True),
                ("cold, through s3fs alone", url, "cold", None, False),
                (f"cold, cache of {SMALL:.0%}", url, "small", int(SMALL * size), True),
            ):
                if name != "cached":
                    shutil.rmtree(folder / cache, ignore_errors=True)
                answered()
                epoch = run_epoch(location, folder / cache, limit, arguments.workers, arguments.decode, signed)
                gets = answered()
                local = local or epoch
                sent = sum(get.size for get in gets) / size
                of_local = local["cpu"] / epoch["cpu"] if not arguments.workers else epoch["rate"] / local["rate"]
                row = (epoch["rate"], epoch["cpu"], of_local, epoch["first"], sent, len(gets))
                rows.setdefault(name, []).append(row)
        print(f"{size / 1e6:,.0f} MB in {arguments.shards} shards, {arguments.workers} workers\n")
        measure = "samples/s" if arguments.workers else "CPU s"
        print(
            f"| epoch | samples/s | CPU s | of local, {measure} | first batch | bytes sent, of the build | requests |"
        )
        print("|---|---|---|---|---|---|---|")
        for name, values in rows.items():
            rate, cpu, ratio, first, sent, requests = map(statistics.median, zip(*values, strict=True))
            print(f"| {name} | {rate:,.0f} | {cpu:.2f} | {ratio:.2f}x | {first:.2f} s | {sent:.2f} | {requests:,.0f} |")


def make_build(folder: Path, url: str, samples_per_shard: int) -> int:
    """Below the folder and at the URL; returns its bytes."""
    blend = {
        "tokenizer": str(ROOT / "examples/tokenizer"),
        "image": {"size": 336},
        "shard": {"max_samples": samples_per_shard},
        "datasets": [{"name": "bench", "adapter": "llava", "root": str(folder / "data"), "samples": "all"}],
    }
    path = folder / "blend.yaml"
    path.write_text(yaml.safe_dump(blend), encoding="utf-8")
    command = [sys.executable, "-m", "preprocess.cli", "build", "--blend", str(path)]
    subprocess.run([*command, "--out", str(folder / "build")], check=True, capture_output=True)
    publish(folder / "build", url)
    return sum(file.stat().st_size for file in (folder / "build/shards").rglob("*") if file.is_file())


def run_epoch(
    location: str, cache: Path, limit: int | None, workers: int, decode: str, signed: bool
) -> dict[str, float]:
    task = json.dumps([location, str(cache), limit, workers, decode, signed])
    done = subprocess.run(
        [sys.executable, "-c", EPOCH, task],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    report: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return report


if __name__ == "__main__":
    main()
