"""Measure builds whose data is in object storage against the same data on a local disk, all in one run.

    python -m tools.bench.remote_inputs [--scratch FOLDER] [--images 300] [--workers 2] [--kinds folder stored.zip ...]

The S3 server (moto) runs on this machine, shares its cores, and copies a whole object for each range of it: seconds are
more than what the client costs, and grow with the size of archives; requests and bytes are those of any S3.
Each build is a new process: of local files, from S3, and from S3 again with nothing changed. Requests (GET, listings
included) and bytes are counted by the server. Needs Linux; prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.support.image_archives import KINDS
from tests.support.remote_inputs import put
from tests.support.s3_server import Get, answered, s3_server
from tools.bench.data import PHOTOS, RECORDS, ROOT, machine, make_images

ANSWER_WORDS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="a folder on a local disk")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", default=["folder", "stored.zip", "plain.tar", "hf.parquet"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch, s3_server() as bucket:
        print(f"{machine()}\n")
        folder = Path(scratch)
        make_images(folder / "made", arguments.images, ANSWER_WORDS)
        print("| images in | local | from S3 | ratio | requests | bytes, of the data | again | requests |")
        print("|---|---|---|---|---|---|---|---|")
        for kind in arguments.kinds:
            print(measured(folder, kind, bucket, arguments.workers), flush=True)


def measured(folder: Path, kind: str, bucket: str, workers: int) -> str:
    """A row of the table."""
    data = folder / f"data-{kind}"
    data.mkdir()
    (data / "records.json").write_bytes((folder / "made" / RECORDS).read_bytes())
    images = {path.name: path.read_bytes() for path in sorted((folder / "made" / PHOTOS).glob("*.jpg"))}
    KINDS[kind](data / kind, images)
    size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
    local, _ = built(folder, f"local-{kind}", str(data), kind, workers)
    url = put(data, f"{bucket}/{kind}")
    answered()
    first, gets = built(folder, f"remote-{kind}", url, kind, workers)
    again, more = built(folder, f"remote-{kind}", url, kind, workers)
    sent = sum(get.size for get in gets) / size
    numbers = f"{local:.1f} s | {first:.1f} s | {first / local:.2f} | {len(gets):,} | {sent:.2f}"
    return f"| {kind} | {numbers} | {again:.1f} s | {len(more):,} |"


def built(folder: Path, name: str, root: str, kind: str, workers: int) -> tuple[float, list[Get]]:
    """Seconds of a build, and what the server answered."""
    dataset = {"name": "bench", "adapter": "llava", "root": root, "samples": "all"}
    blend = {
        "tokenizer": str(ROOT / "examples/tokenizer"),
        "shard": {"max_samples": 500},
        "datasets": [{**dataset, "annotations": "records.json", "images": kind}],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(blend), encoding="utf-8")
    command = [sys.executable, "-m", "preprocess.cli", "build", "--blend", str(path), "--out", str(folder / name)]
    begin = time.perf_counter()
    done = subprocess.run([*command, "--workers", str(workers), "--json"], capture_output=True, text=True, cwd=ROOT)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    assert json.loads(done.stdout)
    return seconds, answered()


if __name__ == "__main__":
    main()
