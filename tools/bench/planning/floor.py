"""Measure what looking at the files of images costs in itself, and what a plan adds to it.

    python -m tools.bench.planning.floor [--num-files 50000] [--repeats 7] [--scratch FOLDER]

CPU microseconds for each file, the least of some rounds: of `os.stat` alone, in several ways, and of the steps around
it in a plan. The files are in folders of a thousand, all in the cache of the system.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from preprocess.compiler.image_states import StatesTask, run_states
from preprocess.images.stamps import file_stamps, plain_paths
from tools.bench.data import ROOT, machine
from tools.bench.plan import RUNNER, write_files
from tools.bench.planning.once import file_name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-files", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--scratch", type=Path, default=None, help="a folder on a local disk")
    arguments = parser.parse_args()
    count: int = arguments.num_files
    print(f"{machine()}\n\n{count:,} files\n\n| | CPU µs a file |\n|---|---|", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        for what, work in _cases(Path(scratch), count).items():
            least = min(_cpu_s(work) for _ in range(arguments.repeats))
            print(f"| {what} | {least / count * 1e6:.2f} |", flush=True)


def _cases(scratch: Path, count: int) -> dict[str, Callable[[], object]]:
    files, spool = scratch / "files", scratch / "spool"
    write_files(files, count)
    task = {"mode": "write", "spool": str(spool), "rows": count, "num_files": count}
    subprocess.run([sys.executable, str(RUNNER), json.dumps(task)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    names = [file_name(number) for number in range(count)]
    paths = [os.fsencode(name) for name in names]
    folder = os.open(files, os.O_RDONLY | os.O_DIRECTORY)
    states = StatesTask(spool=spool, stores=(files,), cache=scratch / "cache", start=0, stop=count, look="")

    def stat_below() -> None:
        for path in paths:
            os.stat(path, dir_fd=folder)

    def stat_from_root() -> None:
        for name in names:
            os.stat(f"{files}/{name}")

    def scan() -> None:
        for parent in os.listdir(files):
            with os.scandir(f"{files}/{parent}") as entries:
                for entry in entries:
                    entry.stat()

    def stat_of_one() -> None:
        for _ in paths:
            os.stat(folder)

    return {
        "`os.stat` of an open folder, so that no path is looked up": stat_of_one,
        "`os.stat` below an open folder": stat_below,
        "`os.stat` from the root": stat_from_root,
        "`os.scandir` and `stat` of each entry": scan,
        "checks of the names": lambda: plain_paths(names),
        "`file_stamps`: checks, `os.stat`, sizes and times as arrays": lambda: file_stamps(str(files), names, _none),
        "`run_states`: a plan's task as a whole": lambda: run_states(states),
    }


def _none(name: str) -> tuple[int, int]:
    raise AssertionError(name)  # every file is a plain one


def _cpu_s(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
