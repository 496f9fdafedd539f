"""Charts as inline SVG, drawn by matplotlib (extra `view`), for pages of one file.

Rules: the same numbers give the same bytes. Colours are the page's CSS variables, so charts follow light and dark. Text
stays text, and a name from data is never read as markup of formulas. A chart says in words what it shows.

    bars("Samples", ["coco", "vqa"], {"asked for": [0.5, 0.5], "real": [0.4, 0.6]}, unit="share")
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dst.common.terminal_text import visible
from dst.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MAX_SERIES = 8
"""As many as page.css has colours"""

_WIDTH = 7.2  # inches of 72 points; the page scales the chart
_LONGEST_NAME = 40
# Colours that matplotlib writes -> what the page has for them.
_INK, _LINE = "#010101", "#020202"
_SERIES = tuple(f"#10100{number}" for number in range(1, MAX_SERIES + 1))
_SETTINGS: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dsvl",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],  # measures text; the page has its own font
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _LINE,
    "grid.linewidth": 0.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "text.parse_math": False,
    "axes.unicode_minus": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A series of a line chart: values at places of the x axis, in order."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def bars(title: str, names: Sequence[str], series: Mapping[str, Sequence[float]], *, unit: str) -> str:
    """Horizontal bars: for each name one bar of each series, from the top down."""
    height = 0.16 * len(series) + 0.14
    with _drawing(title, max(1.2, height * len(names) + 0.9)) as (figure, axes, svg):
        for number, (label, values) in enumerate(series.items()):
            offsets = [row * (len(series) + 1) + number for row in range(len(names))]
            axes.barh(offsets, list(values), height=0.85, color=_SERIES[number % MAX_SERIES], label=_name(label))
        middles = [row * (len(series) + 1) + (len(series) - 1) / 2 for row in range(len(names))]
        axes.set_yticks(middles, [_name(name) for name in names])
        axes.margins(y=0.02)
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        _plain_numbers(axes.xaxis)
        axes.grid(axis="x")
        _legend(figure, axes, len(series))
    return svg[0]


def histogram(
    title: str, edges: Sequence[float], series: Mapping[str, Sequence[float]], *, unit: str, log: bool = False
) -> str:
    """Counts between edges, the series stacked. edges: one more than counts. log: the x axis is logarithmic."""
    with _drawing(title, 2.6) as (figure, axes, svg):
        below = [0.0] * (len(edges) - 1)
        widths = [end - start for start, end in pairwise(edges)]
        for number, (label, counts) in enumerate(series.items()):
            colour = _SERIES[number % MAX_SERIES]
            axes.bar(edges[:-1], list(counts), widths, bottom=below, align="edge", color=colour, label=_name(label))
            below = [total + count for total, count in zip(below, counts, strict=True)]
        if log:
            axes.set_xscale("log", base=2)
        _plain_numbers(axes.xaxis, axes.yaxis)
        axes.set_xlabel(unit)
        axes.grid(axis="y")
        _legend(figure, axes, len(series))
    return svg[0]


def lines(title: str, series: Sequence[Line], *, x_unit: str, y_unit: str, log: bool = False) -> str:
    """Lines over each other. log: a logarithmic y axis, if all values are positive. A line of one point is a dot."""
    with _drawing(title, 3.0) as (figure, axes, svg):
        for number, line in enumerate(series):
            marker = "o" if len(line.x) < 2 else None
            axes.plot(
                list(line.x),
                list(line.y),
                color=_SERIES[number % MAX_SERIES],
                linewidth=1.4,
                linestyle="-" if number < MAX_SERIES else "--",
                marker=marker,
                label=_name(line.name),
            )
        if log and all(value > 0 for line in series for value in line.y):
            axes.set_yscale("log")
        _plain_numbers(axes.xaxis, axes.yaxis)
        axes.set_xlabel(x_unit)
        axes.set_ylabel(y_unit)
        axes.grid()
        _legend(figure, axes, len(series))
    return svg[0]


@contextmanager
def _drawing(title: str, height: float) -> Iterator[tuple[Figure, Axes, list[str]]]:
    """A figure to draw on; afterwards the list holds its SVG. Raises ConfigError without matplotlib."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError([f"{error}; charts need the packages of pip install 'dsvl[view]'"]) from None
    svg: list[str] = []
    with rc_context({**_SETTINGS}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the page's fonts draw the text, not matplotlib's
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        yield figure, axes, svg
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg.append(_inline(out.getvalue(), title))


def _plain_numbers(*all_axes: Axis) -> None:
    """Numbers as people write them, also on logarithmic axes: 1,000 and not a power in the markup of formulas."""
    for axis in all_axes:
        axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axis.set_minor_formatter(lambda value, _: "")


def _legend(figure: Figure, axes: Axes, num_series: int) -> None:
    if num_series > 1:
        figure.legend(loc="outside upper left", ncols=min(num_series, 3), fontsize=8)


def _name(text: str) -> str:
    """A name from data as a label: shown as it is, in one line, its end cut. matplotlib leaves out names with `_`."""
    shown = visible(" ".join(text.split()))
    shown = shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 1]}…"
    return f"\u2060{shown}" if shown.startswith("_") else shown


def _inline(svg: str, title: str) -> str:
    """The chart as a part of a page: without prolog, with its title, scaled, and with ids of its own."""
    body = svg[svg.index("<svg") :]
    opening = re.match(r"<svg[^>]*>", body)
    assert opening is not None
    view_box = re.search(r'viewBox="[^"]*"', opening[0])
    body = body[opening.end() :]
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)  # a style would hold for the whole page
    prefix = f"c{zlib.crc32((title + body).encode()):x}-"
    body = re.sub(r'id="([^"]+)"', lambda found: f'id="{prefix}{found[1]}"', body)
    body = re.sub(r'xlink:href="#([^"]+)"', lambda found: f'href="#{prefix}{found[1]}"', body)
    body = re.sub(r"url\(#([^)]+)\)", lambda found: f"url(#{prefix}{found[1]})", body)
    colours = {_INK: "currentColor", _LINE: "var(--line)"}
    colours |= {colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, start=1)}
    for colour, variable in colours.items():
        body = body.replace(colour, variable)
    label = escape(visible(title), quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" stroke-linejoin="round" '
        f"{view_box[0] if view_box else ''}>{body.strip()}"
    )
