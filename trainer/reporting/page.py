"""`dsvl-train report --html`: charts of runs, in one file that needs no network and runs no script.

Names of folders, datasets and settings come from data: the template escapes them, and a content security policy
forbids scripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dst.common.charts import Line, lines
from dst.common.html_pages import page_environment, page_policy
from shards.files import replace_file
from trainer.reporting.panels import WIDTH, Panel, make_panels
from trainer.reporting.runs import Run, differing_settings
from trainer.reporting.summary import summary_rows


def write_report_page(page: Path, runs: Sequence[Run]) -> None:
    """Write the page. Raises ConfigError without matplotlib, OSError if it cannot be written."""
    panels = make_panels(runs)
    environment = page_environment(Path(__file__).parent)
    environment.filters["number"] = lambda value: f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    html = environment.get_template("report.html.jinja").render(
        policy=page_policy(),
        runs=runs,
        summary=summary_rows(runs),
        differing=differing_settings(runs),
        panels=[(panel, _chart(panel)) for panel in panels],
        width=WIDTH,
    )
    replace_file(page, html.encode())


def _chart(panel: Panel) -> str:
    series = [Line(name=each.name, x=each.curve.steps.tolist(), y=each.curve.values.tolist()) for each in panel.series]
    return lines(panel.title, series, x_unit="step", y_unit=panel.unit)
