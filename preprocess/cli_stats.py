"""The command `dsvl-prep stats`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from dst.common.cli import PAGE
from dst.common.terminal_text import json_line, visible
from preprocess.cli_options import PATH, PrepCommand, build_location


class _StatsCommand(PrepCommand):
    extras = ("remote", "view")


@click.command(cls=_StatsCommand)
@build_location
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    show_default="the build's limits.max_length",
    help="Report how full packed sequences of this many tokens will be.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers of the table and of the report as JSON.")
@click.option("--html", "page", type=PAGE, help="Write the report with its charts to this page.")
@click.option("--csv", "folder", type=PATH, help="Write the tables of the report to this folder, a file for each.")
@click.option(
    "--read",
    type=click.IntRange(min=0),
    default=20_000,
    show_default=True,
    help="With --json, --html, --csv: most samples to read for texts, turns and image sizes.",
)
def stats(
    build: str | Path, max_length: int | None, as_json: bool, page: Path | None, folder: Path | None, read: int
) -> None:
    """Lengths, images, trained shares, what sharing saves, what filters dropped, how full packed sequences will be.

    The report has more: mixture shares asked for and real, histograms, what an epoch shows, rejects with examples,
    frequent texts, images in two datasets.
    """
    import shards
    from preprocess.views.packing_report import packing_report, packing_report_text
    from preprocess.views.stats import build_stats, filter_counts, never_drawn, print_stats

    if folder is not None:
        from preprocess.reports.tables import check_csv_folder

        check_csv_folder(folder)
    opened = shards.open(build)
    rows, dropped = build_stats(opened), filter_counts(opened)
    questions, missed = opened.manifest.questions or (), never_drawn(opened)
    packing = packing_report(opened, max_length or opened.manifest.config.limits.max_length)
    tree = {
        "datasets": rows,
        "never_drawn": [one.to_json() for one in missed],
        "filtered": dropped,
        "questions": [asdict(question) for question in questions],
        "packing": packing and asdict(packing),
    }
    if as_json or page is not None or folder is not None:
        from preprocess.reports.build_report import make_report, write_page
        from preprocess.reports.tables import write_csv

        report = make_report(build, max_length=max_length, read=read)
        if page is not None:
            write_page(page, report)
        if folder is not None:
            write_csv(folder, report.tables)
        tree["report"] = report.to_json()
    if as_json:
        click.echo(json_line(tree))
        return
    print_stats(rows, dropped, questions, missed)
    if packing:
        click.echo(packing_report_text(packing))
    for written in filter(None, (page, folder)):
        click.echo(f"wrote {visible(written)}")
