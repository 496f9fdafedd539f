"""Measure what tiles are worth: the same model trained on pages of small type, squashed to one square, and as tiles.

    python -m tools.bench.pages [--pages 6000] [--steps 500,1200,800] [--scratch FOLDER]

Pages are drawn here: 2 x 3 tiles with six coloured fields, each with a code of two digits; see tools/bench/reading.
A small random model first learns to read on single tiles, which are the same for both sides. Then both sides start
from it, with the same pages, seed and steps: one with `tiles: 1`, one with `tiles: 6`. The score is the exact match of
`dsvl-train eval` on pages that were held out. Runs use one core; prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench.data import ROOT, machine
from tools.bench.reading.pages import PAGE, Layout
from tools.bench.reading.records import blend_of, write_records
from tools.bench.reading.runs import BATCH, NEW_MODEL, Trained, exact_match, export, train
from tools.bench.training.goals import Goal, print_goals
from tools.bench.training.packing import compiled

TILES = (1, 6)
BETTER = 3.0
TOKENIZER = ROOT / "examples/tokenizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What the model learns on single tiles."""

    name: str
    layout: Layout
    samples: int


LESSONS = (
    Lesson(name="one digit in one field", layout=Layout(columns=1, rows=1, fields=(1, 1), digits=1), samples=4000),
    Lesson(name="two digits in 1 to 3 fields", layout=Layout(columns=1, rows=1, fields=(1, 3), digits=2), samples=8000),
)


def main() -> None:
    arguments = _arguments()
    print(f"{machine()}; one core\n", flush=True)
    *lesson_steps, steps = arguments.steps
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        reader = _reader(folder, lesson_steps)
        data = folder / "pages"
        write_records(data, PAGE, train=arguments.pages, held_out=arguments.held_out)
        print("\n| pages as | exact match | answers | steps | CPU seconds | tokens | tiles |\n" + "|---" * 7 + "|")
        scores = {}
        for tiles in TILES:
            build = _build(folder / f"pages-{tiles}", data, reader, tiles)
            run = train(folder / f"run-{tiles}", build, {"init_from": str(reader)}, steps=steps)
            scores[tiles], answers = exact_match(run)
            cells = (f"`tiles: {tiles}`", f"{scores[tiles]:.1%}", f"{answers:,}", *_costs(run, steps))
            print(f"| {' | '.join(cells)} |", flush=True)
    ratio = scores[TILES[1]] / max(scores[TILES[0]], 1 / answers)  # none right counts as one right
    print_goals([Goal(what="exact match, tiles / one square", got=ratio, expected=BETTER, at_least=True)])


def _reader(folder: Path, steps: list[int]) -> Path:
    """An export of the model after all lessons."""
    print(f"| lesson | steps of {BATCH} | CPU seconds | tokens | tiles |\n|---|---|---|---|---|")
    model: dict[str, Any] = NEW_MODEL
    tokenizer = TOKENIZER
    for number, (lesson, count) in enumerate(zip(LESSONS, steps, strict=True), start=1):
        data = folder / f"lesson-{number}"
        write_records(data, lesson.layout, train=lesson.samples, held_out=0)
        build = _build(folder / f"lesson-{number}-build", data, tokenizer, 1)
        run = train(folder / f"lesson-{number}-run", build, model, steps=count)
        tokenizer = export(run, folder / f"lesson-{number}-export")
        model = {"init_from": str(tokenizer)}
        print(f"| {' | '.join((lesson.name, *_costs(run, count)))} |", flush=True)
    return tokenizer


def _build(folder: Path, data: Path, tokenizer: Path, tiles: int) -> Path:
    compiled(blend_of(data, tokenizer, tiles), folder)
    return folder / "build"


def _costs(run: Trained, steps: int) -> tuple[str, ...]:
    return f"{steps:,}", f"{run.cpu_seconds:,.0f}", f"{run.tokens:,}", f"{run.images:,}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=6000, help="that are trained")
    parser.add_argument("--held-out", type=int, default=128, help="pages that are asked about, six questions each")
    parser.add_argument("--steps", type=_numbers, default=[500, 1200, 800], help="of each lesson, and on pages")
    parser.add_argument("--scratch", type=Path, default=None, help="a folder on a local disk")
    arguments = parser.parse_args()
    if len(arguments.steps) != len(LESSONS) + 1:
        parser.error(f"--steps: got {len(arguments.steps)} numbers; expected {len(LESSONS) + 1}, such as 500,1200,800")
    if arguments.scratch is not None:
        arguments.scratch = arguments.scratch.resolve()
        arguments.scratch.mkdir(parents=True, exist_ok=True)
    return arguments


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
