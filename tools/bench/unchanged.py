"""Measure what a change costs where its feature is not used: this checkout against another, in turn, in one run.

    python -m tools.bench.unchanged --against CHECKOUT [--records 2000] [--repeats 5] [--only compile,loader,step]

Both read the same LLaVA-like records, and loaders and steps the same builds, which the other checkout compiled. Noise
only ever adds, so the least of all rounds counts: CPU seconds of the command, seconds a sample, seconds of a step.
Needs Linux; prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import yaml

from tools.bench.checkouts import run_python
from tools.bench.data import ROOT, machine, make_images
from tools.bench.sharing.steps import run_step
from tools.bench.training.goals import Goal, print_goals
from tools.bench.training.one_step import StepTask

ALLOWED = 1.03
ANSWER_WORDS = 24  # with the question and the template about 190 tokens of the example tokenizer
STEP_RECORDS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="another checkout of this repository")
    parser.add_argument("--records", type=int, default=2000, help="with a 640x480 JPEG each")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the least counts")
    parser.add_argument("--only", default="compile,loader,step")
    parser.add_argument("--scratch", type=Path, default=None, help="a folder on a local disk")
    arguments = parser.parse_args()
    before, parts = arguments.against.resolve(), arguments.only.split(",")
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        data = Path(scratch)
        print(f"{machine()}\n", flush=True)
        make_images(data, arguments.records, ANSWER_WORDS)
        for store in ("original", "resized"):
            compile_seconds(before, data, store, data / store)
        compile_seconds(before, data, "resized", data / "step", first=STEP_RECORDS)
        print("| | before | now | ratio |\n|---|---|---|---|")
        for what, measured in _measurements(data, arguments.records).items():
            if what.partition(",")[0] in parts:
                goals.append(compared(what, measured, before, arguments.repeats))
    print_goals(goals)


def _measurements(data: Path, records: int) -> dict[str, Callable[[Path], float]]:
    """What is measured -> its cost with the packages of a checkout."""
    measurements: dict[str, Callable[[Path], float]] = {}
    for store in ("original", "resized"):
        measurements[f"compile, `{store}`, CPU s"] = partial(
            compile_seconds, data=data, store=store, out=data / "again"
        )
        for mode in ("full", "read"):
            what = f"loader, `{store}`, {'decoding' if mode == 'full' else 'reading only'}, ms a sample"
            measurements[what] = partial(load_milliseconds, data=data, store=store, mode=mode, records=records)
    for attention in ("mmca", "causal"):
        task = StepTask(build=str(data / "step"), attention=attention, precision="fp32", at_once=True)
        measurements[f"step, {attention}, s"] = partial(_step_seconds, task=task)
    return measurements


def compared(what: str, measured: Callable[[Path], float], before: Path, repeats: int) -> Goal:
    """The least cost of each checkout over rounds in which they take turns."""
    costs: dict[Path, list[float]] = {before: [], ROOT: []}
    for _ in range(repeats):
        for checkout, of_checkout in costs.items():
            of_checkout.append(measured(checkout))
    least, now = min(costs[before]), min(costs[ROOT])
    print(f"| {what} | {least:.3f} | {now:.3f} | {now / least:.3f} |", flush=True)
    return Goal(what=what, got=now / least, expected=ALLOWED)


def compile_seconds(checkout: Path, data: Path, store: str, out: Path, first: int | None = None) -> float:
    """CPU seconds of the whole command for a first build with one worker."""
    dataset = {"name": "bench", "adapter": "llava", "root": str(data), "samples": "all"}
    tree = {
        "tokenizer": str(ROOT / "examples/tokenizer"),
        "image_tokens": 576,
        "image": {"store": store, "size": 336},
        "datasets": [dataset | ({"first": first} if first else {})],
    }
    blend = data / "blend.yaml"
    blend.write_text(yaml.safe_dump(tree), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    command = ["-m", "preprocess.cli", "build", "--blend", str(blend), "--out", str(out), "--workers", "1"]
    return run_python(checkout, command)[1]


def load_milliseconds(checkout: Path, data: Path, store: str, mode: str, records: int) -> float:
    """Of a sample, by the checkout's own runner, in its process."""
    task = {"data": str(data), "mode": mode, "samples": records, "build": store}
    line, _ = run_python(checkout, [str(checkout / "tools/bench/peers/ours.py"), json.dumps(task)])
    report = json.loads(line)
    return float(report["seconds"] / report["samples"] * 1000)


def _step_seconds(checkout: Path, task: StepTask) -> float:
    return min(run_step(checkout, task).seconds)


if __name__ == "__main__":
    main()
