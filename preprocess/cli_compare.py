"""Commands of `dsvl-prep` that compare two builds or two collections of data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click

from dst.common.cli import PAGE
from dst.common.cpus import usable_cpus
from dst.common.terminal_text import json_line
from preprocess.cli_options import PATH, PrepCommand, location


@click.command(cls=PrepCommand)
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@click.option(
    "--match",
    type=click.Choice(["bytes", "near"]),
    default="near",
    show_default=True,
    help="bytes: equal files; near: also equal pixels, and images that look the same.",
)
@click.option(
    "--near-distance",
    type=click.IntRange(0, 31),
    default=31,
    show_default=True,
    help="Images look the same if at most this many of 256 bits of their perceptual hashes differ.",
)
@click.option(
    "--question-key",
    default="question",
    show_default=True,
    help="The key of the question in records; records without it may be conversations.",
)
@click.option(
    "--ngram",
    type=click.IntRange(min=1),
    default=13,
    show_default=True,
    help="Questions match if they share this many words in a row.",
)
@click.option("--workers", type=click.IntRange(min=1), default=usable_cpus, show_default="the CPUs it may use")
@click.option("--json", "as_json", is_flag=True, help="Print counts and all pairs as JSON.")
@click.option("--html", "page", type=PAGE, help="Also write a page that shows the pairs side by side.")
def overlap(
    first: Path,
    second: Path,
    match: Literal["bytes", "near"],
    near_distance: int,
    question_key: str,
    ngram: int,
    workers: int,
    as_json: bool,
    page: Path | None,
) -> None:
    """List the images and questions of FIRST that SECOND has too.

    Each is a build, a folder, an archive of images, or a file of questions or records (.txt, .jsonl, .json).
    """
    from dst.common.progress import Bar
    from preprocess.views.overlap import find_overlap, print_overlap
    from preprocess.views.overlap_page import write_overlap_page

    result = find_overlap(
        first,
        second,
        match=match,
        distance=near_distance,
        question_key=question_key,
        ngram=ngram,
        workers=workers,
        progress=Bar(),
    )
    if page is not None:
        write_overlap_page(page, result, first, second)
    if as_json:
        click.echo(json_line(result.to_json()))
    else:
        print_overlap(result)


@click.command(cls=PrepCommand)
@click.argument("first", type=location, metavar="BUILD_A")
@click.argument("second", type=location, metavar="BUILD_B")
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="Show this many samples.")
@click.option(
    "--read",
    type=click.IntRange(min=0),
    default=20_000,
    show_default=True,
    help="Read this many samples of a dataset to find out how their tokens changed.",
)
@click.option("--exit-code", is_flag=True, help="Exit with 1 if the builds differ, as git does.")
@click.option("--json", "as_json", is_flag=True, help="Print all differences as JSON, with --limit samples.")
@click.option("--html", "page", type=PAGE, help="Also write a page with texts and images side by side.")
def diff(
    first: str | Path, second: str | Path, limit: int, read: int, exit_code: bool, as_json: bool, page: Path | None
) -> None:
    """Show what differs between two builds, each in a folder or at a URL.

    Configuration, template, tokenizer, versions, counts, annotation files, and samples that were added, removed or
    changed. The exit code is 0 whether they differ or not, unless --exit-code is given.
    """
    import shards
    from dst.common.progress import Bar
    from preprocess.views.diff import compare_builds
    from preprocess.views.diff_page import write_diff_page
    from preprocess.views.diff_terminal import print_differences

    old, new = shards.open(first), shards.open(second)
    differences = compare_builds(old, new, limit=limit, read=read, progress=Bar())
    if page is not None:
        write_diff_page(page, differences, old, new)
    if as_json:
        click.echo(json_line(differences.to_json()))
    else:
        print_differences(differences)
    if exit_code and differences:
        sys.exit(1)
