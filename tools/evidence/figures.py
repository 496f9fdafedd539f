"""The two figures of docs/evidence.md, drawn by matplotlib (extra `view`) from results.json."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tools.evidence.summary import LOSSES, SETTINGS, of_setting, pooled

COLOURS = {"causal": "#2a6fb0", "mmca": "#c2571a"}
STYLES = {"pixel_shuffle": "-", "perceiver": "--"}
INK = "#808080"  # readable on light and on dark pages
SETTINGS_OF_MATPLOTLIB = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dsvl",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
SMOOTHED = 3
"""Points of a curve that are averaged: each is the mean of the last few steps, of one sequence each"""


def draw(results: dict[str, Any], folder: Path) -> None:
    """Write evidence-curves.svg and evidence-blind.svg."""
    from matplotlib import rc_context

    with rc_context(SETTINGS_OF_MATPLOTLIB):
        curves(results, folder / "evidence-curves.svg")
        blind(results, folder / "evidence-blind.svg")


def curves(results: dict[str, Any], file: Path) -> None:
    """The loss in training, of both stages, mean of the seeds."""
    figure, (axes,) = canvas(1, height=3.2)
    steps = results["plan"]["projector_steps"]
    for attention, projector in SETTINGS:
        runs = of_setting(results, attention, projector)
        if not runs:
            continue
        points = [
            [
                (step + before, loss)
                for stage, before in (("projector", 0), ("lora", steps))
                for step, loss in run["stages"][stage]["train"]
            ]
            for run in runs
        ]
        x = [step for step, _ in points[0]]
        y = smooth([fmean(run[number][1] for run in points) for number in range(len(x))])
        axes.plot(x, y, STYLES[projector], color=COLOURS[attention], label=f"{attention}, {projector}")
    axes.axvline(steps, color=INK, linewidth=0.6, linestyle=":")
    axes.set_xlabel("step (left of the dotted line: projector alone; right of it: LoRA as well)")
    axes.set_ylabel("loss in training")
    axes.legend(ncols=2)
    save(figure, file)


def blind(results: dict[str, Any], file: Path) -> None:
    """How much the held-out loss rises with wrong images."""
    figure, all_axes = canvas(len(LOSSES), height=2.6)
    for axes, (dataset, title) in zip(all_axes, LOSSES.items(), strict=True):
        for row, (attention, projector) in enumerate(SETTINGS):
            runs = of_setting(results, attention, projector)
            for offset, shown in ((-0.15, "exchanged"), (0.15, "blank")):
                if not runs:
                    continue
                difference, margin = pooled(runs, dataset, "loss", shown)
                axes.errorbar(
                    difference,
                    row + offset,
                    xerr=margin,
                    fmt="o" if shown == "exchanged" else "s",
                    markersize=4,
                    fillstyle="full" if shown == "exchanged" else "none",
                    color=COLOURS[attention],
                    capsize=2,
                )
        axes.axvline(0, color=INK, linewidth=0.6)
        axes.set_yticks(range(len(SETTINGS)), [f"{attention}, {projector}" for attention, projector in SETTINGS])
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("loss with wrong images - right (full: exchanged, open: blank)", fontsize=8)
    all_axes[0].set_ylim(len(SETTINGS) - 0.5, -0.5)  # from the top down; all axes share it
    save(figure, file)


def canvas(columns: int, *, height: float) -> tuple[Any, Sequence[Any]]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots(1, columns, sharey=True, squeeze=False)[0]


def save(figure: Any, file: Path) -> None:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    file.write_text("\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n")


def smooth(values: Sequence[float]) -> list[float]:
    """Running means of the last SMOOTHED values."""
    return [fmean(values[max(0, end - SMOOTHED) : end]) for end in range(1, len(values) + 1)]
