"""Measure a whole build by its number of records: time, memory, files; the same again; opening it and a first batch.

    python -m tools.bench.scale [--sizes 100000,1000000,10000000] [--scratch FOLDER] [--workers 2]

Records are short texts in JSON lines, so that what grows with their number shows, not what images cost
(tools.bench.compile). Each step is a process of its own. The largest size takes 32 GB of disk and forty minutes of two
cores. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from tools.bench.data import ROOT, machine, words

BUILD = """
import json, resource, sys, time
from pathlib import Path
from preprocess.compiler.build import run_build
start = time.perf_counter()
report = run_build(Path(sys.argv[1]), out=sys.argv[2], workers=int(sys.argv[3]))
own, below = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "cpu": own.ru_utime + own.ru_stime + below.ru_utime + below.ru_stime,
    "own_cpu": own.ru_utime + own.ru_stime,
    "own_peak": own.ru_maxrss * 1024,
    "worker_peak": below.ru_maxrss * 1024,
}))
"""
OPEN = """
import json, resource, sys, time
start = time.perf_counter()
import shards
from shards.loader import Loader
imported = time.perf_counter()
build = shards.open(sys.argv[1])
next(iter(Loader(build, batch_size=8, max_length=2048, decode="none")))
print(json.dumps({
    "seconds": time.perf_counter() - imported,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""
Numbers = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="100000,1000000,10000000", help="records")
    parser.add_argument("--scratch", type=Path, help="a folder on a local disk")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    print(f"{machine()}, {arguments.workers} workers\n", flush=True)
    print(
        "| records | annotations | build, s | CPU s | driver, CPU s | driver, peak | worker, peak | again, s | build |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    opened = []
    for size in map(int, arguments.sizes.split(",")):
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            folder = Path(scratch)
            blend, out = write_blend(folder, size), folder / "build"
            first, again = (_run(BUILD, blend, out, arguments.workers) for _ in range(2))
            print(row(size, first, again, folder / "mine.jsonl", out), flush=True)
            opened.append((size, _run(OPEN, out), out.joinpath("manifest.json").stat().st_size))
    print("\n| records | open and first batch, s | peak | manifest |\n|---|---|---|---|")
    for size, numbers, manifest in opened:
        print(f"| {size:,} | {numbers['seconds']:.2f} | {_bytes(numbers['peak'])} | {_bytes(manifest)} |")


def write_blend(folder: Path, size: int) -> Path:
    """A blend of one dataset of short texts."""
    with (folder / "mine.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(_lines(size))
    blend = folder / "blend.yaml"
    dataset = {"name": "mine", "adapter": "chat", "annotations": "mine.jsonl", "samples": "all"}
    tree = {"tokenizer": str(ROOT / "examples/tokenizer"), "template": "vicuna", "variables": {"system_prompt": "Hi."}}
    blend.write_text(yaml.safe_dump({**tree, "image_tokens": 16, "datasets": [dataset]}), encoding="utf-8")
    return blend


def row(size: int, first: Numbers, again: Numbers, annotations: Path, out: Path) -> str:
    files = [path for path in out.rglob("*") if path.is_file() and not path.relative_to(out).parts[0].startswith(".")]
    cells = [
        f"{size:,}",
        _bytes(annotations.stat().st_size),
        f"{first['seconds']:.1f}",
        f"{first['cpu']:.1f}",
        f"{first['own_cpu']:.1f}",
        _bytes(first["own_peak"]),
        _bytes(first["worker_peak"]),
        f"{again['seconds']:.1f}",
        f"{len(files):,} files, {_bytes(sum(path.stat().st_size for path in files))}",
    ]
    return f"| {' | '.join(cells)} |"


def _lines(size: int) -> Iterator[str]:
    choose = random.Random(0)
    texts = [(words(choose, 6), words(choose, 10)) for _ in range(1000)]
    for number in range(size):
        question, answer = texts[number % len(texts)]
        messages = [{"role": "user", "content": f"{number}: {question}"}, {"role": "assistant", "content": answer}]
        yield json.dumps({"id": f"{number}", "messages": messages}) + "\n"


def _run(program: str, *arguments: object) -> Numbers:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    numbers: Numbers = json.loads(done.stdout.splitlines()[-1])
    return numbers


def _bytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    main()
