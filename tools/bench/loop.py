"""Measure the optimizer steps of `dsvl-train run`, here and in another checkout, each against a bare torch loop.

    python -m tools.bench.loop --against CHECKOUT [--steps 60] [--repeats 5]

All train a small model of one size on the same batches of one build; a run and the bare loop of its checkout begin with
the same weights and must end with the same loss. Each trains with few and with many steps, in turn: the difference is
the steps alone, without the start. Noise only ever adds, so the least CPU seconds of all rounds count, on one thread.
Needs Linux; prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from pathlib import Path

import yaml

from tools.bench.checkouts import run_python
from tools.bench.data import ROOT, machine, make_images
from tools.bench.training.bare_loop import LoopReport
from tools.bench.training.goals import Goal, print_goals
from tools.bench.training.one_step import SIZES
from tools.bench.unchanged import ANSWER_WORDS, compile_seconds
from trainer.training.metrics import read_journal

RECORDS = 64
LOGGED = 10
"""Steps of a line of the log, as by default, and of the short runs"""
SAME_LOSS = 1e-4
"""Largest relative difference of the last losses"""
AT_LEAST = 1.0
COLUMNS = ("", "start and end, CPU s", "a step, CPU ms", "tokens/CPU s", "trained tokens/CPU s", "of its bare loop")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
"""One thread, since threads that wait would be counted too; no GPU"""
RUNNER = ROOT / "tools/bench/training/bare_loop.py"
BARE, RUN = "a bare loop, {}", "`dsvl-train run`, {}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="another checkout of this repository")
    parser.add_argument("--steps", type=int, default=60, help=f"of the long runs, after the {LOGGED} of the short ones")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the least counts")
    parser.add_argument("--scratch", type=Path, default=None, help="a folder on a local disk")
    arguments = parser.parse_args()
    before = arguments.against.resolve()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        data = Path(scratch)
        print(f"{machine()}\n", flush=True)
        make_images(data, RECORDS, ANSWER_WORDS)
        compile_seconds(before, data, "resized", data / "build")
        print_goals(compared(data, before, arguments.steps, arguments.repeats))


def compared(data: Path, before: Path, steps: int, repeats: int) -> list[Goal]:
    """Train on the build in `data`, and print the table. Raises SystemExit if a run and its bare loop differ."""
    configs = [write_config(data, count) for count in (LOGGED, LOGGED + steps)]
    checkouts = {"before": before, "now": ROOT}
    titles = [kind.format(name) for name in checkouts for kind in (BARE, RUN)]
    costs: dict[str, tuple[list[float], list[float]]] = {title: ([], []) for title in titles}
    for _ in range(repeats):
        for length, config in enumerate(configs):
            for name, checkout in checkouts.items():
                report, seconds = run_bare_loop(checkout, config)
                costs[BARE.format(name)][length].append(seconds)
                loss, seconds = run_command(checkout, config)
                costs[RUN.format(name)][length].append(seconds)
                check_equal(loss, report, name)
    tokens, trained = (sum(of_steps[LOGGED:]) for of_steps in (report.tokens, report.trained_tokens))
    print(f"{steps} steps of {tokens / steps:,.0f} tokens, {trained / steps:,.0f} of them trained\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    rates = {}
    for title, (short, long) in costs.items():
        seconds = min(long) - min(short)
        rates[title] = tokens / seconds
        share = rates[title] / rates[BARE.format(title.rpartition(" ")[2])]
        start = min(short) - seconds / steps * LOGGED
        cells = (
            f"{start:.2f}",
            f"{1000 * seconds / steps:.1f}",
            f"{tokens / seconds:,.0f}",
            f"{trained / seconds:,.0f}",
        )
        print(f"| {title} | {' | '.join(cells)} | {share:.3f} |", flush=True)
    got = rates[RUN.format("now")] / rates[RUN.format("before")]
    return [Goal(what="tokens per CPU second, now / before", got=got, expected=AT_LEAST, at_least=True)]


def write_config(data: Path, steps: int) -> Path:
    """A train.yaml with a small model, and constant learning rates as in the bare loop; the rest are defaults."""
    decoder, vit = SIZES["0.5M"]
    tree = {
        "build": str(data / "build"),
        "out": str(data / "run"),
        "model": {
            "encoder": {"kind": "hf", "config": vit},
            "projector": {"kind": "mlp"},
            "decoder": {"config": decoder},
        },
        "learning_rates": dict.fromkeys(("encoder", "projector", "embeddings", "decoder"), 1e-4),
        "precision": "fp32",
        "batch": {"global_batch_size": 2, "micro_batch_size": 1, "max_length": 1024, "workers": 0},
        "schedule": {"steps": steps, "kind": "constant", "warmup_ratio": 0},
        "checkpoints": {"every": 0},
        "logging": {"every": LOGGED},
    }
    path = data / f"train-{steps}.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def run_bare_loop(checkout: Path, config: Path) -> tuple[LoopReport, float]:
    """What it did, and CPU seconds of the process."""
    line, seconds = run_python(checkout, ["-P", str(RUNNER), str(config)], ENVIRONMENT)
    return LoopReport(**json.loads(line)), seconds


def run_command(checkout: Path, config: Path) -> tuple[float, float]:
    """The last loss that `dsvl-train run` logs, and CPU seconds of its processes."""
    out = config.parent / "run"
    shutil.rmtree(out, ignore_errors=True)
    _, seconds = run_python(checkout, ["-m", "trainer.cli", "run", "--config", str(config)], ENVIRONMENT)
    return float([entry["loss"] for entry in read_journal(out) if entry["kind"] == "train"][-1]), seconds


def check_equal(loss: float, report: LoopReport, name: str) -> None:
    """Raises SystemExit unless a logged loss is the bare loop's but for rounding: else they would do different work."""
    steps = list(zip(report.losses, report.trained_tokens, strict=True))[-LOGGED:]
    expected = sum(mean * tokens for mean, tokens in steps) / sum(tokens for _, tokens in steps)
    if not math.isclose(loss, expected, rel_tol=SAME_LOSS):
        raise SystemExit(
            f"{name}: the mean loss of the last {LOGGED} steps is {loss}, and {expected} in the bare loop; expected a "
            f"relative difference of at most {SAME_LOSS}"
        )


if __name__ == "__main__":
    main()
