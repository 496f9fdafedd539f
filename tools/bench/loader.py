"""Measure our loader against other data libraries and against the bare parts of its work, all in one run.

    python -m tools.bench.loader --scratch FOLDER [--samples 2000] [--repeats 5] [--columns webdataset,energon]

All read the same samples: a 640x480 JPEG of about 82 KB and about 190 text tokens each. webdataset and Megatron-Energon
read our tars, mosaicml-streaming reads MDS shards written from them, and a map dataset as DeepSpeed-VisualChat has it
reads the original files. A runner is a script of tools/bench/peers; each runs in its library's own environment, made
below --scratch and kept there. No two run at the same time. Images come from the page cache.
Takes about an hour; prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tools.bench.data import ROOT, machine, make_images

RUNNERS = Path(__file__).resolve().parent / "peers"
ANSWER_WORDS = 24  # with the question and the template about 190 tokens of the example tokenizer
SHARDS = 8  # webdataset shares out whole shards among workers
TORCH = ("torch", "torchvision", "transformers", "numpy", "pillow")
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}

PREPROCESS = {
    "": "its own preprocessing",
    "hf": "CLIPImageProcessor, torchvision",
    "hf-pillow": "CLIPImageProcessor, Pillow",
    "torchvision": "lean: torchvision to uint8",
}
"""How 336-pixel tensors are made. By peers: as their users do, with Hugging Face's processor, and leaner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A way to read the samples: a runner, the environment it needs, and what its task says."""

    title: str
    runner: str
    packages: tuple[str, ...] = ()
    """Of its own environment; none: this program's."""
    prepares: bool = False
    preprocess: tuple[str, ...] = ("",)
    task: dict[str, str] = field(default_factory=dict)


PEERS = ("hf-pillow", "hf", "torchvision")
COLUMNS = {
    "original-exact": Column(title="ours, `original`, exact", runner="ours", task={"decode": "exact"}),
    "original-fast": Column(title="ours, `original`, fast", runner="ours", task={"decode": "fast"}),
    "resized": Column(title="ours, `resized`", runner="ours", task={"build": "resized"}),
    "webdataset": Column(title="webdataset", runner="by_webdataset", packages=("webdataset", *TORCH), preprocess=PEERS),
    "energon": Column(
        title="Megatron-Energon",
        runner="by_energon",
        packages=("megatron-energon", *TORCH),
        prepares=True,
        preprocess=PEERS,
    ),
    "streaming": Column(
        title="mosaicml-streaming",
        runner="by_streaming",
        packages=("mosaicml-streaming", *TORCH),
        prepares=True,
        preprocess=PEERS,
    ),
    "map": Column(title="map dataset, on the fly", runner="by_map_dataset", packages=TORCH, preprocess=PEERS),
}
BARE = {
    "simplejpeg decodes the `resized` images into a buffer": (
        Column(title="", runner="bare", task={"build": "resized"}),
        "full",
    ),
    "look every sample of `original` up in its index and copy it out of the mapped tar": (
        Column(title="", runner="bare"),
        "read",
    ),
    "the same of `resized`": (Column(title="", runner="bare", task={"build": "resized"}), "read"),
    "copy every sample of `original`, all looked up beforehand": (Column(title="", runner="bare"), "copy"),
}

FIRST = "time to the first batch, s"
READ = "reading alone, samples/s"
WORKERS = "two workers against one"


class Bench:
    """The scratch folder, and runs of runners in it."""

    def __init__(self, scratch: Path, data: Path, samples: int) -> None:
        self.scratch = scratch
        self.data = data
        self.samples = samples

    def python(self, column: Column) -> str:
        """The interpreter of the column's environment, which is made if it is not there yet."""
        if not column.packages:
            return sys.executable
        folder = self.scratch / column.runner
        python = folder / "bin/python"
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
            lock = (ROOT / "lock-cpu.txt").read_text(encoding="utf-8").splitlines()
            (folder / "torch.txt").write_text("\n".join(line for line in lock if line.startswith("torch==")))
            subprocess.run([*pip, "-c", str(folder / "torch.txt"), *column.packages], check=True)
            (folder / "complete").touch()
        return str(python)

    def versions(self, column: Column) -> str:
        code = "import sys, importlib.metadata as all\nfor name in sys.argv[1:]: print(name, all.version(name))"
        command = [self.python(column), "-c", code, *column.packages]
        return ", ".join(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines())

    def run(self, column: Column, mode: str, **task: Any) -> dict[str, Any]:
        """What the runner reports."""
        full = {"data": str(self.data), "mode": mode, "samples": self.samples, **column.task, **task}
        command = [self.python(column), str(RUNNERS / f"{column.runner}.py"), json.dumps(full)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if mode != "prepare" else {}
        return report

    def rate(self, column: Column, mode: str, **task: Any) -> float:
        report = self.run(column, mode, **task)
        return float(report["samples"] / report["seconds"])

    def median(self, column: Column, mode: str, repeats: int) -> float:
        return statistics.median(self.rate(column, mode) for _ in range(repeats))

    def scaling(self, column: Column, repeats: int) -> float:
        """What two processes that share nothing do together, against one."""
        ratios = []
        for _ in range(repeats):
            with ThreadPoolExecutor(2) as threads:
                together = sum(threads.map(lambda _: self.rate(column, "full"), range(2)))
            ratios.append(together / self.rate(column, "full"))
        return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="a folder on a local disk; environments stay there")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each measurement; the median counts")
    parser.add_argument("--columns", default=",".join(COLUMNS))
    arguments = parser.parse_args()
    columns = [COLUMNS[name] for name in arguments.columns.split(",")]
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        bench = Bench(arguments.scratch.resolve(), Path(folder), arguments.samples)
        print(f"{machine()}\n")
        make_images(bench.data, arguments.samples, ANSWER_WORDS)
        make_builds(bench.data, arguments.samples)
        for column in columns:
            if column.packages:
                print(f"- {column.title}: {bench.versions(column)}", flush=True)
            if column.prepares:
                bench.run(column, "prepare")
        medians = measure(bench, columns, arguments.repeats)
        print(f"\n| | {' | '.join(column.title for column in columns)} |\n|---{'|---' * len(columns)}|")
        for row in dict.fromkeys(row for row, _ in medians):
            cells = (medians.get((row, column.title), "") for column in columns)
            print(f"| {row} | {' | '.join(cell if isinstance(cell, str) else _number(cell) for cell in cells)} |")
        bare = {title: bench.median(column, mode, arguments.repeats) for title, (column, mode) in BARE.items()}
        print("\n| bare part, one core | samples/s |\n|---|---|")
        for title, rate in bare.items():
            print(f"| {title} | {_number(rate)} |")
        decode, _ = next(iter(BARE.values()))
        print(f"| two processes that decode at once, against one | {bench.scaling(decode, arguments.repeats):.2f}x |")
        print_goals(medians, bare)


def make_builds(data: Path, samples: int) -> None:
    """data/original and data/resized, by the compiler."""
    for store in ("original", "resized"):
        dataset = {"name": "bench", "adapter": "llava", "root": str(data), "samples": "all"}
        blend = {
            "tokenizer": str(ROOT / "examples/tokenizer"),
            "image": {"store": store, "size": 336},
            "shard": {"max_samples": -(-samples // SHARDS)},
            "datasets": [dataset],
        }
        path = data / f"{store}.yaml"
        path.write_text(yaml.safe_dump(blend), encoding="utf-8")
        command = [sys.executable, "-m", "preprocess.cli", "build", "--blend", str(path), "--out", str(data / store)]
        subprocess.run(command, check=True, capture_output=True)


def measure(bench: Bench, columns: list[Column], repeats: int) -> dict[tuple[str, str], float | str]:
    """(row, column's title) -> median. Repeats go through all columns in turn, so that drift is shared.

    The peers' further preprocessings and their two workers, which no goal names, are measured once.
    """
    rates: dict[tuple[str, str], list[float]] = {}

    def note(row: str, column: Column, value: float) -> None:
        rates.setdefault((row, column.title), []).append(value)

    for number in range(repeats):
        print(f"repeat {number + 1} of {repeats}", file=sys.stderr, flush=True)
        for column in columns:
            for preprocess in column.preprocess if number == 0 else column.preprocess[:1]:
                report = bench.run(column, "full", preprocess=preprocess)
                note(_all_work(preprocess), column, report["samples"] / report["seconds"])
                if preprocess == column.preprocess[0]:
                    note(FIRST, column, report["first_batch_s"])
            note(READ, column, bench.rate(column, "read"))
            if column.runner == "ours" or number == 0:
                one_worker, two_workers = (
                    bench.rate(column, "full", preprocess=column.preprocess[0], workers=n) for n in (1, 2)
                )
                note(WORKERS, column, two_workers / one_worker)
    medians: dict[tuple[str, str], float | str] = {key: statistics.median(values) for key, values in rates.items()}
    for column in columns:
        used = bench.run(column, "full", preprocess=column.preprocess[0], workers=1, memory=True)
        for key, title in (("memory_mb", "own memory"), ("rss_mb", "resident memory")):
            peaks = f"{used[key][0]:,.0f}, {used[key][1]:,.0f}"
            medians[f"a worker's peak {title} in the first and the last quarter, MB", column.title] = peaks
    return medians


def print_goals(medians: dict[tuple[str, str], float | str], bare: dict[str, float]) -> None:
    """Each ratio that was expected, against the peers as their users run them."""
    own = _all_work("")
    peers = [column.title for column in COLUMNS.values() if column.packages]

    def value(row: str, column: str) -> float:
        median = medians.get((row, column), math.nan)
        return median if isinstance(median, float) else math.nan

    def best(row: str) -> float:
        return max((value(row, peer) for peer in peers[:-1] if (row, peer) in medians), default=math.nan)

    exact, fast, resized = (COLUMNS[name].title for name in ("original-exact", "original-fast", "resized"))
    decode, walk, walk_resized, copy = bare.values()
    print("\n| ratio | got | expected |\n|---|---|---|")
    for preprocess in PEERS:
        row = _all_work(preprocess)
        print(f"| {exact} / best library with {PREPROCESS[preprocess]} | {value(own, exact) / best(row):.2f}x | 1.5x |")
        print(f"| {fast} / best library with {PREPROCESS[preprocess]} | {value(own, fast) / best(row):.2f}x | 2.5x |")
        against = value(own, resized) / value(row, peers[-1])
        print(f"| {resized} / map dataset with {PREPROCESS[preprocess]} | {against:.1f}x | 10x |")
    print(f"| {resized} / bare decode loop | {value(own, resized) / decode:.0%} | 80% |")
    print(
        f"| reading alone, {exact} / 35,000 samples/s, the walk that the goal was set by "
        f"| {value(READ, exact) / 35_000:.0%} | 60% |"
    )
    print(f"| reading alone, {exact} / indexed walk | {value(READ, exact) / walk:.0%} | 60% |")
    print(f"| reading alone, {resized} / indexed walk | {value(READ, resized) / walk_resized:.0%} | 60% |")
    print(f"| reading alone, {exact} / copying alone | {value(READ, exact) / copy:.0%} | |")
    for column in (exact, fast, resized):
        print(f"| two workers against one, {column} | {value(WORKERS, column):.2f}x | 1.8x |")


def _all_work(preprocess: str) -> str:
    return f"all work, samples/s ({PREPROCESS[preprocess]})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


if __name__ == "__main__":
    main()
