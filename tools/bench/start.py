"""Measure how long the programs and their parts take to start, here and in another checkout, in turn.

    python -m tools.bench.start [--against CHECKOUT] [--repeats 14]

Each is a new process of this environment; the best time counts, since noise only ever adds. A module that the other
checkout does not have leaves its cell empty. Takes a minute; prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tools.bench.data import ROOT, machine

HELP = "import sys; sys.argv = ['program', '--help']; from {module} import {function}; {function}()"
MISTAKE = """
import sys, tempfile
file = tempfile.NamedTemporaryFile("w", suffix=".yaml")
file.write("{build: build, out: run, learning_rates: {projectr: 1e-3}}")
file.flush()
sys.argv = ["dsvl-train", "run", "--config", file.name]
from trainer.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 2
"""
STARTS = {
    "`dsvl-prep --help`": HELP.format(module="preprocess.cli", function="main"),
    "`dsvl-train --help`": HELP.format(module="trainer.cli", function="program"),
    "`dsvl-train run` with a misspelt key": MISTAKE,
    "`import dst`": "import dst",
    "`import shards`": "import shards",
    "modules of a compile worker": "import preprocess.compiler.run_task",
    "modules of `dsvl-prep build`": "import preprocess.compiler.build",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--repeats", type=int, default=14, help="processes for each cell; the best counts")
    arguments = parser.parse_args()
    checkouts = [ROOT, *([arguments.against.resolve()] if arguments.against else [])]
    print(f"{machine()}\n\n| | {' | '.join(map(str, checkouts))} |\n|---{'|---' * len(checkouts)}|")
    for title, code in STARTS.items():
        times: list[list[float]] = [[] for _ in checkouts]
        for _ in range(arguments.repeats):
            for checkout, seconds in zip(checkouts, times, strict=True):
                if (took := start(checkout, code)) is not None:
                    seconds.append(took)
        print(
            f"| {title} | {' | '.join(f'{min(seconds):.3f} s' if seconds else '' for seconds in times)} |", flush=True
        )


def start(checkout: Path, code: str) -> float | None:
    """Seconds of a process that runs the code with the packages of a checkout; None if it fails."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(checkout)}
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, env=environment, capture_output=True, check=False)
    took = time.perf_counter() - begin
    return took if done.returncode == 0 else None


if __name__ == "__main__":
    main()
