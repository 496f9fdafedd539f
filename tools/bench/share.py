"""Measure samples that share their images (`share: 8`) against separate ones (`share: 1`), side by side in one run.

    python -m tools.bench.share [--images 1000] [--repeats 3] [--only compile,loader,step] [--scratch FOLDER]

Data in VQA v2's layout: 640x480 photos with 5.4 questions each, of about 20 tokens; an image has 576 tokens.
compile: records/s of the whole command, and the size of the build. loader: records/s of packed sequences of 4,096
tokens, by processes of their own. step: forward, backward and update over equal records, and its peak memory.
The sides take turns. Needs Linux; prints Markdown for docs/benchmarks.md, and ends with a table of goals.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tools.bench.data import machine
from tools.bench.sharing.builds import STORES, bench_builds, build_seconds
from tools.bench.sharing.loading import bench_loading
from tools.bench.sharing.questions import SHARES, make_questions
from tools.bench.sharing.steps import bench_steps
from tools.bench.training.goals import Goal, print_goals
from tools.bench.training.one_step import SIZES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="photos of compile and loader")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each measurement; medians count")
    parser.add_argument("--only", default="compile,loader,step")
    parser.add_argument("--attention", default="mmca,causal", help="of step")
    parser.add_argument("--types", default="fp32", help="of step, such as fp32,bf16")
    parser.add_argument("--size", choices=SIZES, default=next(iter(SIZES)), help="parameters of the decoder of step")
    parser.add_argument("--scratch", type=Path, default=None, help="a folder on a local disk")
    arguments = parser.parse_args()
    parts = set(arguments.only.split(","))
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        print(f"{machine()}\n", flush=True)
        if parts & {"compile", "loader"}:
            data = folder / "data"
            records = make_questions(data, arguments.images)
            print(f"{records:,} records about {arguments.images:,} photos")
            if "compile" in parts:
                goals += bench_builds(data, records, arguments.repeats)
            if "loader" in parts:
                for store in STORES:
                    for share in SHARES:
                        build_seconds(data, store, share, records)
                goals += bench_loading(data, records, arguments.repeats)
        if "step" in parts:
            attentions, types = arguments.attention.split(","), arguments.types.split(",")
            goals += bench_steps(folder / "step", attentions, types, arguments.size, arguments.repeats)
    print_goals(goals)


if __name__ == "__main__":
    main()
