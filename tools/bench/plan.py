"""Measure planning: of how many conversations, at what cost, with how much memory; against another checkout if asked.

    python -m tools.bench.plan [--against CHECKOUT] [--rows 500000,1000000,2000000] [--num-files 200000] [--repeats 3]

Each row names one image of a folder; nothing of an earlier plan is reused, so the times are those of every build whose
inputs did not change. Noise only ever adds, so the least of all rounds counts. CPU seconds are of the process that
plans, and of its workers. Memory is the growth of that process at its peak, with the pages of files that it touched.
Needs Linux; prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from tools.bench.checkouts import run_python
from tools.bench.data import ROOT, machine
from tools.bench.planning.once import file_name
from tools.bench.training.goals import Goal, print_goals

RUNNER = ROOT / "tools/bench/planning/once.py"
WORKERS = 2
Report = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, default=None, help="another checkout of this repository")
    parser.add_argument("--rows", default="500000,1000000,2000000")
    parser.add_argument("--num-files", type=int, default=200_000, help="image files in the folder")
    parser.add_argument("--eval-share", type=float, default=0.0, help="split.eval; above 0, images are compared too")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the least counts")
    parser.add_argument("--scratch", type=Path, default=None, help="a folder on a local disk")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.rows.split(",")]
    checkouts = {"now": ROOT} | ({"before": arguments.against.resolve()} if arguments.against else {})
    print(f"{machine()}\n\n{arguments.num_files:,} image files, {WORKERS} workers\n", flush=True)
    least: dict[tuple[str, int], Report] = {}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        write_files(Path(scratch) / "files", arguments.num_files)
        print("| rows | | planner, CPU s | workers, CPU s | s | bytes a row |\n|---|---|---|---|---|---|")
        for rows in sizes:
            for name, checkout in checkouts.items():
                task: dict[str, Any] = {
                    "spool": str(Path(scratch) / f"{name}-{rows}"),
                    "files": str(Path(scratch) / "files"),
                    "rows": rows,
                    "num_files": arguments.num_files,
                    "workers": WORKERS,
                    "eval_share": arguments.eval_share,
                }
                run_once(checkout, task, "write")
                least[name, rows] = measured(checkout, task, arguments.repeats)
                print(row(name, rows, least[name, rows]), flush=True)
    print_goals(goals(sizes, least))


def write_files(folder: Path, count: int) -> None:
    """Empty files: planning asks for their size and time, and reads none."""
    for number in range(count):
        path = folder / file_name(number)
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.touch()


def measured(checkout: Path, task: dict[str, Any], repeats: int) -> Report:
    reports = [run_once(checkout, task, "plan") for _ in range(repeats)]
    return {name: min(report[name] for report in reports) for name in reports[0]}


def run_once(checkout: Path, task: dict[str, Any], mode: str) -> Report:
    line, _ = run_python(checkout, [str(RUNNER), json.dumps(task | {"mode": mode})])
    report: Report = json.loads(line)
    return report


def row(name: str, rows: int, report: Report) -> str:
    return (
        f"| {rows:,} | {name} | {report['cpu']:.2f} | {report['workers_cpu']:.2f} | {report['seconds']:.2f} "
        f"| {report['bytes'] / rows:.0f} |"
    )


def goals(sizes: list[int], least: dict[tuple[str, int], Report]) -> list[Goal]:
    most = sizes[-1]
    result = [
        Goal(what=f"{most:,} rows against {size:,}, CPU s of the planner", got=got, expected=2.2)
        for size in sizes
        if size * 2 == most
        for got in [least["now", most]["cpu"] / least["now", size]["cpu"]]
    ]
    if ("before", most) in least:
        before, now = least["before", most], least["now", most]
        result += [
            Goal(what=f"before against now, {what}", got=old / new, expected=20, at_least=True)
            for what, old, new in [
                ("CPU s of the planner", before["cpu"], now["cpu"]),
                ("seconds", before["seconds"], now["seconds"]),
                ("CPU s with workers", before["cpu"] + before["workers_cpu"], now["cpu"] + now["workers_cpu"]),
            ]
        ]
    result.append(Goal(what="bytes a row", got=least["now", most]["bytes"] / most / 100, expected=1.0))
    return result


if __name__ == "__main__":
    main()
