"""The tables of docs/evidence.md, from results.json: no number of them is typed by hand.

python -m tools.evidence.page --results docs/evidence.json --docs docs     # after a change of the tables' layout
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from tools.evidence.figures import draw
from tools.evidence.summary import LOSSES, SETTINGS, of_setting, pooled, row

BEGIN, END = "<!-- results -->", "<!-- end of results -->"
SCORES = (("captions", "cider", "CIDEr"), ("questions", "exact_match", "right answers"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--docs", type=Path, required=True)
    arguments = parser.parse_args()
    write_page(json.loads(arguments.results.read_text()), arguments.docs)


def write_page(results: dict[str, Any], docs: Path) -> None:
    """Write evidence.json, the figures, and what is between the marks of evidence.md; SystemExit without marks."""
    (docs / "evidence.json").write_text(json.dumps(results, indent=None, separators=(",", ":")) + "\n")
    draw(results, docs / "figures")
    page = docs / "evidence.md"
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise SystemExit(
            f"{page}: expected the lines {BEGIN} and {END} around the tables; write them where tables belong"
        )
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{tables(results)}\n{END}{after}")


def tables(results: dict[str, Any]) -> str:
    """Markdown: the held-out losses, the scores, and the costs."""
    blocks = [machine(results), "\n".join(verdicts(results))]
    for dataset, title in LOSSES.items():
        blocks.append("\n".join([f"**Held-out loss, {title}**", "", *losses(results, dataset)]))
    for dataset, measure, title in SCORES:
        blocks.append("\n".join([f"**{title}, {dataset}**", "", *losses(results, dataset, measure)]))
    blocks.append(
        "\n".join(["**Each seed**: loss with exchanged images minus loss with the right ones", "", *seeds(results)])
    )
    if "probe" in results:
        blocks.append("\n".join(["**What a linear classifier reads in the encoder's features**", "", *probed(results)]))
    blocks.append("\n".join(["**Costs of a run**", "", *costs(results)]))
    return "\n\n".join(blocks)


def machine(results: dict[str, Any]) -> str:
    libraries = ", ".join(f"{name} {number}" for name, number in results["libraries"].items())
    seconds = [sum(cost["cpu_seconds"] for cost in run["costs"].values()) for run in results["runs"]]
    hours = sum(seconds) / 3600
    return (
        f"{len(results['runs'])} of {results['plan']['seeds'] * len(SETTINGS)} runs are finished, on "
        f"{results['machine']['processor']}, one core each: {hours:.2f} core hours in "
        f"all, {fmean(seconds) / 60:.1f} core minutes a run. {libraries}."
    )


def verdicts(results: dict[str, Any]) -> Iterator[str]:
    """One line per setting: whether the difference to exchanged images is above its interval, in how many seeds."""
    for attention, projector in SETTINGS:
        runs = of_setting(results, attention, projector)
        if not runs:
            yield f"- {attention}, {projector}: not measured."
            continue
        parts = []
        for dataset in LOSSES:
            difference, margin = pooled(runs, dataset, "loss", "exchanged")
            seeds_shown = sum(
                wrong["difference"] > (wrong["margin"] or 0.0)
                for wrong in (row(run, dataset, "loss")["exchanged"] for run in runs)
            )
            verdict = "**the right images help**" if difference > margin else "no help of the right images is shown"
            parts.append(
                f"{dataset}: {verdict} ({difference:+.3f} ± {margin:.3f}; {seeds_shown} of {len(runs)} seeds alone)"
            )
        yield f"- {attention}, {projector}: {'; '.join(parts)}."


def losses(results: dict[str, Any], dataset: str, measure: str = "loss") -> Iterator[str]:
    """One line per setting: means over the seeds, and the differences with their intervals."""
    yield "| attention, projector | right images | exchanged | difference | blank | difference |"
    yield "|---|---|---|---|---|---|"
    for attention, projector in SETTINGS:
        runs = of_setting(results, attention, projector)
        if not runs:
            continue
        rows = [row(run, dataset, measure) for run in runs]
        cells = [f"{fmean(each['right'] for each in rows):.3f}"]
        for shown in ("exchanged", "blank"):
            difference, margin = pooled(runs, dataset, measure, shown)
            value = fmean(each[shown]["value"] for each in rows)
            cells += [f"{value:.3f}", f"{difference:+.3f} ± {margin:.3f}"]
        yield f"| {attention}, {projector} | {' | '.join(cells)} |"


def seeds(results: dict[str, Any]) -> Iterator[str]:
    """One line per setting, with the difference of each seed in both datasets."""
    count = results["plan"]["seeds"]
    titles = [f"{dataset}, seed {seed}" for dataset in LOSSES for seed in range(count)]
    yield f"| attention, projector | {' | '.join(titles)} |"
    yield "|---" * (len(titles) + 1) + "|"
    for attention, projector in SETTINGS:
        by_seed = {run["seed"]: run for run in of_setting(results, attention, projector)}
        cells = []
        for dataset in LOSSES:
            for seed in range(count):
                wrong = row(by_seed[seed], dataset, "loss")["exchanged"] if seed in by_seed else None
                cells.append(f"{wrong['difference']:+.3f} ± {wrong['margin']:.3f}" if wrong else "")
        yield f"| {attention}, {projector} | {' | '.join(cells)} |"


def probed(results: dict[str, Any]) -> Iterator[str]:
    """One line per question."""
    yield "| question | right answers about photos it has not seen |"
    yield "|---|---|"
    for question, share in results["probe"].items():
        yield f"| {question} | {share:.0%} |"


def costs(results: dict[str, Any]) -> Iterator[str]:
    """One line per setting and stage: speed and memory, means over the seeds."""
    yield "| attention, projector | stage | steps | tokens | tokens per CPU second | wall tokens/s | memory, GiB |"
    yield "|---|---|---|---|---|---|---|"
    for attention, projector in SETTINGS:
        runs = of_setting(results, attention, projector)
        if not runs:
            continue
        for stage in ("projector", "lora"):
            stages = [run["stages"][stage] for run in runs]
            tokens = fmean(each["tokens"] for each in stages)
            speed = fmean(run["stages"][stage]["tokens"] / run["costs"][stage]["cpu_seconds"] for run in runs)
            wall = fmean(each["tokens"] / each["seconds"] for each in stages)
            memory = max(each["memory_bytes"] for each in stages) / 2**30
            steps = results["plan"][f"{stage}_steps"]
            cells = [stage, str(steps), f"{tokens:,.0f}", f"{speed:.0f}", f"{wall:.0f}", f"{memory:.1f}"]
            yield f"| {attention}, {projector} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
