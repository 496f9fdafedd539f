"""A training step over the same records as separate and as shared samples, each in a process of its own, in turn.

Both models begin with the same weights; their summed losses over the same records are compared before anything counts.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tools.bench.checkouts import run_python
from tools.bench.data import ROOT
from tools.bench.sharing.builds import build_folder, build_seconds
from tools.bench.sharing.questions import SHARES, make_questions
from tools.bench.training.goals import Goal
from tools.bench.training.one_step import StepReport, StepTask

RUNNER = ROOT / "tools/bench/training/one_step.py"
QUESTIONS = (5, 6)
"""About each photo of a step; on average nearly those of VQA v2"""
FASTER = {"mmca": 3.5, "causal": 3.0}
LESS_MEMORY = 0.5
SAME_LOSS = {"fp32": 1e-5, "bf16": 1e-2}
"""Largest relative difference of the summed losses"""


def bench_steps(
    scratch: Path, attentions: Sequence[str], precisions: Sequence[str], size: str, repeats: int
) -> list[Goal]:
    """scratch: where data and builds of a step are made."""
    scratch.mkdir(parents=True)
    records = make_questions(scratch, len(QUESTIONS), QUESTIONS)
    for share in SHARES:
        build_seconds(scratch, "resized", share, records)
    print(f"\n{records} records about {len(QUESTIONS)} photos; a decoder of {size} parameters; one micro-batch\n")
    print(
        "| attention | type | separate, records/s | shared, records/s | ratio | separate, peak | shared, peak | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|")
    goals = []
    for attention in attentions:
        for precision in precisions:
            goals += _compared(scratch, records, attention, precision, size, repeats)
    return goals


def _compared(scratch: Path, records: int, attention: str, precision: str, size: str, repeats: int) -> list[Goal]:
    def task(share: int, *, memory: bool = False) -> StepTask:
        folder = str(build_folder(scratch, "resized", share))
        return StepTask(build=folder, attention=attention, precision=precision, size=size, at_once=True, memory=memory)

    runs: dict[int, list[StepReport]] = {share: [] for share in SHARES}
    for _ in range(repeats):
        for share in SHARES:
            runs[share].append(run_step(ROOT, task(share)))
    separate, shared = runs.values()
    check_equal(separate[0].loss, shared[0].loss, SAME_LOSS[precision])
    seconds = [[statistics.median(report.seconds) for report in reports] for reports in runs.values()]
    faster = statistics.median(one / two for one, two in zip(*seconds, strict=True))
    peaks = [run_step(ROOT, task(share, memory=True)).peak_bytes for share in SHARES]
    rates = (f"{records / statistics.median(each):.2f}" for each in seconds)
    sizes = (f"{peak / 2**30:.2f} GiB" for peak in peaks)
    cells = (attention, precision, *rates, f"{faster:.2f}x", *sizes, f"{peaks[1] / peaks[0]:.2f}x")
    print(f"| {' | '.join(cells)} |", flush=True)
    name = f"{attention}, {precision}"
    passes = separate[0].images / shared[0].images
    asked = records / len(QUESTIONS)
    return [
        Goal(what=f"training step, records/s, {name}", got=faster, expected=FASTER[attention], at_least=True),
        Goal(what=f"encoder passes, separate / shared, {name}", got=passes, expected=asked, at_least=True),
        Goal(what=f"peak memory of a step, {name}", got=peaks[1] / peaks[0], expected=LESS_MEMORY),
    ]


def check_equal(separate: float, shared: float, tolerance: float) -> None:
    """Raises SystemExit unless two summed losses are equal but for rounding: else the sides would do different work."""
    if not math.isclose(separate, shared, rel_tol=tolerance):
        raise SystemExit(
            f"the loss of the records is {separate} as separate samples and {shared} as shared ones; expected a "
            f"relative difference of at most {tolerance}"
        )


def run_step(checkout: Path, task: StepTask) -> StepReport:
    """Measure with the packages of a checkout, in a process of its own. Raises SystemExit if it fails."""
    line, _ = run_python(checkout, ["-P", str(RUNNER), json.dumps(asdict(task))])
    return StepReport(**json.loads(line))
