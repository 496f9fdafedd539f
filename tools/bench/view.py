"""Measure the viewer on a thousand and on a million samples, its memory, and the page of one file.

    python -m tools.bench.view [--scratch FOLDER] [--repeats 50]

The small build has 1,000 samples with a 640x480 photo each, compiled. The big one has them 1,000 times: its tars are
links to one file, its indexes are files of their own. Requests go to both servers in turn, to places that a seeded
generator draws; files were just written and come from the page cache. Needs Linux for the peak of a process's memory,
chromium, and 1 GB of disk. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import shards
from shards.format.manifest_file import write_manifest
from shards.format.shard_info import ShardList
from shards.images.thumbnails import side_for, thumbnail
from tests.support.browser import running_chromium
from tools.bench.compile import run_build
from tools.bench.data import PHOTOS, RECORDS, ROOT, machine, make_images

SMALL, COPIES = 1000, 1000
RATIO, PAGE_MS, PEAK_MB = 1.5, 300, 300
EXPORT_SAMPLES, EXPORT_IMAGES, EXPORT_RATIO, EXPORT_MB, USABLE_S = 200, 5, 2.0, 30, 2.0
BROWSED = 200
"""Pages of the gallery, each with all its images"""

LONG = 708
"""A tenth of the samples have as many tokens"""

Query = Callable[[random.Random, int], str]
PAGES: dict[str, Query] = {
    "a place of the build's order": lambda choose, samples: f"/?from={choose.randrange(samples - 24)}",
    "a place of a random order": lambda choose, samples: f"/?order=random&from={choose.randrange(samples - 24)}",
    "a filter by length": lambda choose, samples: f"/?min_length={LONG}&from={choose.randrange(samples // 2)}",
    "a sample": lambda choose, samples: f"/number/{choose.randrange(samples)}",
    "packed sequences": lambda choose, samples: f"/sequences?cursor={choose.randrange(100)}&chosen=0",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="a folder on a local disk")
    parser.add_argument("--repeats", type=int, default=50, help="requests of each kind to each server; medians count")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        print(f"{machine()}\n")
        make_images(folder, SMALL)
        small = compiled(folder, records_of(folder, 1), "small")
        big = multiplied(small, folder / "big")
        pages_and_memory(small, big, arguments.repeats)
        export(compiled(folder, records_of(folder, EXPORT_IMAGES)[:EXPORT_SAMPLES], "many"), folder / "page.html")


def records_of(folder: Path, images: int) -> list[dict[str, object]]:
    """The benchmark's records, as chats of one round with this many images each."""
    records = json.loads((folder / RECORDS).read_text(encoding="utf-8"))
    names = [record["image"] for record in records]
    return [
        {
            **record,
            "image": [names[(number * images + offset) % len(names)] for offset in range(images)],
            "conversations": [
                {**turn, "value": turn["value"].replace("<image>\n", "<image>\n" * images)}
                for turn in record["conversations"]
            ],
        }
        for number, record in enumerate(records)
    ]


def compiled(folder: Path, records: list[dict[str, object]], name: str) -> Path:
    root = folder / f"{name}-data"
    root.mkdir()
    (root / "images").symlink_to(folder / PHOTOS)
    (root / "chat.json").write_text(json.dumps(records), encoding="utf-8")
    dataset = {"name": "bench", "adapter": "chat", "root": str(root), "samples": "all"}
    blend = folder / f"{name}.json"  # JSON is YAML
    blend.write_text(json.dumps({"tokenizer": str(ROOT / "examples/tokenizer"), "datasets": [dataset]}))
    _, _, report = run_build(root, blend, folder / name, workers=1)
    assert report["datasets"]["bench"]["samples"] == len(records), report
    return folder / name


def multiplied(build: Path, out: Path) -> Path:
    """A build with the samples of another one COPIES times."""
    manifest = shards.open(build).manifest
    shutil.copytree(build, out, ignore=shutil.ignore_patterns("shards", "manifest.json"))
    dataset = manifest.datasets["bench"]
    copies = []
    for info in dataset.shards["train"]:
        (out / info.path).parent.mkdir(parents=True, exist_ok=True)
        for number in range(COPIES):
            stem = info.path.removesuffix(".tar").replace("train-00000", f"train-{number:05d}")
            os.link(build / info.path, out / f"{stem}.tar")
            shutil.copyfile(build / info.index, out / f"{stem}.arrow")
            copies.append(replace(info, path=f"{stem}.tar", index=f"{stem}.arrow"))
    samples = dataset.samples * COPIES
    more = replace(
        dataset,
        records=samples,
        members=samples,
        samples=samples,
        draws=samples,
        splits={"train": samples, "eval": 0},
        images=dataset.images * COPIES,
        tokens=dataset.tokens * COPIES,
        trained_tokens=dataset.trained_tokens * COPIES,
        shards={"train": ShardList(copies), "eval": ShardList()},
    )
    write_manifest(out, replace(manifest, datasets={"bench": more}))
    return out


def pages_and_memory(small: Path, big: Path, repeats: int) -> None:
    sizes = (SMALL, SMALL * COPIES)
    with serving(small) as few, serving(big) as many:
        print(f"| page | {sizes[0]:,} samples | {sizes[1]:,} samples | ratio | goal |\n|---|---|---|---|---|")
        for title, query in PAGES.items():
            times: tuple[list[float], list[float]] = ([], [])
            choose = random.Random(0)
            for repeat in range(repeats + 1):
                for server, size, seconds in zip((few, many), sizes, times, strict=True):
                    took, _ = server.get(query(choose, size))
                    if repeat:  # the first opens shards and templates
                        seconds.append(took)
            few_ms, many_ms = (statistics.median(seconds) * 1e3 for seconds in times)
            is_met = many_ms <= RATIO * few_ms and many_ms < PAGE_MS
            print(
                f"| {title} | {few_ms:.1f} ms | {many_ms:.1f} ms | {many_ms / few_ms:.2f}x | {_met(is_met)} |",
                flush=True,
            )
        for title, address in (
            ("the longest, first time", "/?order=longest"),
            ("a text search that finds nothing, to its first answer", "/?text=absent-from-all-samples"),
            ("the sequence of the last sample", f"/sequences?sample={sizes[1] - 1}"),
        ):
            took, _ = many.get(address)
            print(f"| {title} |  | {took * 1e3:,.0f} ms |  |  |", flush=True)
        images = browse(many, sizes[1])
        peak = many.peak_mb()
    print(
        f"\nPeak memory of the server of the big build, after those and {BROWSED} pages with {images:,} images: "
        f"{peak:.0f} MB (goal: under {PEAK_MB} MB, {_met(peak < PEAK_MB)})\n",
        flush=True,
    )


def browse(server: Server, samples: int) -> int:
    """Open pages of the gallery with their images, in every order and with a search; returns how many images."""
    choose, images = random.Random(1), 0
    orders = ("", "&order=random", "&order=longest", "&order=most-images", "&min_images=1", "&text=shard")
    for number in range(BROWSED):
        start = choose.randrange(900 if "longest" in orders[number % 6] or "most" in orders[number % 6] else samples)
        _, page = server.get(f"/?from={start}{orders[number % 6]}")
        for source in re.findall(rb'src="(/image/[^"]+)"', page):
            server.get(source.decode())
            images += 1
    return images


@contextmanager
def serving(build: Path) -> Iterator[Server]:
    """`dsvl-prep view` of a build, in a process of its own."""
    command = [sys.executable, "-m", "preprocess.cli", "view", str(build), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"http://\S+", process.stdout.readline())
            assert address is not None
            with closing(http.client.HTTPConnection(urlsplit(address[0]).netloc, timeout=60)) as connection:
                yield Server(connection, process.pid)
        finally:
            process.terminate()


@dataclass(frozen=True, slots=True)
class Server:
    """connection: stays open between requests."""

    connection: http.client.HTTPConnection
    pid: int

    def get(self, address: str) -> tuple[float, bytes]:
        """Seconds to the end of an answer, and its body."""
        start = time.perf_counter()
        self.connection.request("GET", address)
        answer = self.connection.getresponse()
        body = answer.read()
        took = time.perf_counter() - start
        assert answer.status == 200, (address, answer.status, body[-500:])
        return took, body

    def peak_mb(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak is not None
        return int(peak[1]) * 1024 / 1e6


def export(build: Path, page: Path, rounds: int = 3) -> None:
    """The whole command against a loop that makes thumbnails of the same stored images, in turns."""
    command = [sys.executable, "-m", "preprocess.cli", "inspect", str(build), "--html", str(page)]
    commands, loops = [], []
    num_images = EXPORT_SAMPLES * EXPORT_IMAGES
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([*command, "--limit", str(EXPORT_SAMPLES)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        commands.append(time.perf_counter() - start)
        start = time.perf_counter()
        images = [image for sample in shards.open(build)["train"] for image in sample.images]
        assert len(images) == num_images
        for image in images:
            thumbnail(bytes(image), side_for(num_images))
        loops.append(time.perf_counter() - start)
    ratio = statistics.median(command_s / loop_s for command_s, loop_s in zip(commands, loops, strict=True))
    size = page.stat().st_size / 1e6
    print(f"| {EXPORT_SAMPLES} samples, {num_images:,} images | seconds | ratio | file |\n|---|---|---|---|")
    print(f"| decoding and thumbnails alone | {statistics.median(loops):.2f} | 1.00x | |")
    is_met = ratio <= EXPORT_RATIO and size < EXPORT_MB
    print(f"| `inspect --html` | {statistics.median(commands):.2f} | {ratio:.2f}x, {_met(is_met)} | {size:.1f} MB |")
    seconds = statistics.median(usable_after(page) for _ in range(rounds))
    print(f"\nThat page loads and follows a key {seconds:.2f} s after a browser opens it ({_met(seconds < USABLE_S)})")


def usable_after(page: Path) -> float:
    """Seconds until chromium has loaded the page and has gone to a sample by a key."""

    def look(tab: Any) -> float:
        tab.keyboard.press("j")
        tab.wait_for_function("() => location.hash !== ''")
        return float(tab.evaluate("performance.now()")) / 1000

    browsers = running_chromium()
    seconds = next(browsers).look(f"file://{page}", look)
    next(browsers, None)  # closes it
    return seconds


def _met(is_met: bool) -> str:
    return "met" if is_met else "**missed**"


if __name__ == "__main__":
    main()
