"""The command line `dsvl-prep`.

Exit codes: 0 fine, 1 bad data or a failed run, 2 bad usage or configuration. Results go to stdout, progress to stderr.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from dst.common.cli import note, run_command
from dst.common.terminal_text import json_line, visible
from preprocess.cli_compare import diff, overlap
from preprocess.cli_options import PATH, PrepCommand, build_location, location
from preprocess.cli_stats import stats
from preprocess.cli_template import template
from preprocess.cli_view import inspect, view


class _PrepGroup(click.Group):
    command_class = PrepCommand


@click.group(cls=_PrepGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="dsvl")
def cli() -> None:
    """Compile visual-instruction datasets into verified, pretokenized shards."""


@cli.command()
@click.option("--blend", required=True, type=PATH, help="The blend file: datasets, amounts, template, tokenizer.")
@click.option("--out", type=location, help="The build folder or a URL. [default: `out:` of the blend, else ./build]")
@click.option("--work", type=PATH, help="Where a build for a URL is compiled. [default: a folder in ~/.cache/dsvl]")
@click.option("--workers", type=click.IntRange(min=1), show_default="the CPUs it may use; with Ray, the cluster's")
@click.option("--set", "settings", multiple=True, metavar="a.b=value", help="Change a setting; may be given often.")
@click.option("--check-inputs", is_flag=True, help="Read all inputs again; compile what has other bytes, same time.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def build(
    blend: Path,
    out: str | Path | None,
    work: Path | None,
    workers: int | None,
    settings: tuple[str, ...],
    check_inputs: bool,
    as_json: bool,
) -> None:
    """Compile a blend into a build folder, or to a URL; what an earlier run finished is used again."""
    from dst.common.progress import Bar
    from preprocess.compiler.build import build_and_publish
    from preprocess.compiler.report import print_report

    report, published = build_and_publish(
        blend, out=out, work=work, workers=workers, settings=settings, check_inputs=check_inputs, progress=Bar()
    )
    if as_json:
        click.echo(json_line(report.to_json() | ({"published": published.to_json()} if published else {})))
        return
    print_report(report)
    if published:
        click.echo(
            f"published {visible(published.location)}: {published.uploaded_files} files, "
            f"{published.uploaded_bytes:,} bytes uploaded, {published.removed_files} old files removed"
        )


@cli.command()
@click.option("--blend", required=True, type=PATH, help="The blend file; its section `fetch` has the limits.")
@click.option("--set", "settings", multiple=True, metavar="a.b=value", help="Change a setting; may be given often.")
@click.option("--again", is_flag=True, help="Ask again for what failed for good, such as HTTP 404.")
@click.option("--verify", is_flag=True, help="Compare every file with its SHA-256, and download damaged ones again.")
@click.option("--allow-private", is_flag=True, help="Connect to addresses of private networks too.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def fetch(
    blend: Path, settings: tuple[str, ...], again: bool, verify: bool, allow_private: bool, as_json: bool
) -> None:
    """Download the images that records name by URL, for builds to find; what an earlier run finished is kept.

    A build never goes online. Exit code 1: some hosts could not be reached; the same command tries them again.
    """
    from dst.common.progress import Bar
    from preprocess.fetch.report import print_fetched
    from preprocess.fetch.run import fetch_blend

    report = fetch_blend(
        blend, settings=settings, allow_private=allow_private, again=again, verify=verify, progress=Bar()
    )
    if as_json:
        click.echo(json_line(report.to_json()))
    else:
        print_fetched(report)
    if report.unreachable:
        click.echo(f"{report.unreachable:,} URLs are unreachable; the same command tries them again", err=True)
        sys.exit(1)


@cli.command()
@build_location
def verify(build: str | Path) -> None:
    """Check every byte of a build, in a folder or at a URL: digests, indexes, samples, tokenizer, manifest."""
    from dst.common.progress import Bar
    from preprocess.views.verify_build import print_verified

    if not print_verified(build, Bar()):
        sys.exit(1)


@cli.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def adapters(names: tuple[str, ...], as_json: bool) -> None:
    """List the datasets that can be read, their layouts, options, sources and licences.

    NAME: only these; a name of the list, or an adapter of your own as my_package.my_module:ADAPTER. Without it,
    extensions that are installed are listed too, with their distribution and version.
    """
    from preprocess.views.adapter_list import list_adapters, print_adapters

    found = list_adapters(names)
    if as_json:
        for row in found.rows:
            click.echo(json_line(row))
    else:
        print_adapters(found.rows)
    for line in found.notes:
        note(line)


@cli.command()
@click.option("--root", required=True, type=PATH, help="The folder to look through.")
@click.option("--out", type=PATH, default=Path("blend.yaml"), show_default=True, help="The file to write.")
@click.option(
    "--tokenizer", metavar="FOLDER", help="Its folder or hub id; the template is chosen by its chat template."
)
def init(root: Path, out: Path, tokenizer: str | None) -> None:
    """Find datasets and files of conversations below a folder, and write a commented blend file for them."""
    from preprocess.blend.draft import write_blend
    from preprocess.views.draft_summary import print_draft

    print_draft(write_blend(root, out, tokenizer), out, asks_for_tokenizer=tokenizer is None)


@cli.command()
@click.option("--blend", type=PATH, help="Show the datasets of this blend file. It needs no tokenizer yet.")
@click.option("--dataset", help="With --blend: only this dataset.")
@click.option("--adapter", help="A name of `dsvl-prep adapters`, or my_package.my_module:ADAPTER.")
@click.option("--root", type=PATH, help="With --adapter: the dataset's folder.")
@click.option("--limit", type=click.IntRange(min=1), default=3, show_default=True, help="How many conversations.")
@click.option("--template", show_default="the blend's, else visualchat", help="A built-in name or a .jinja file.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="a=value",
    help="A setting of the dataset, such as annotations=FILE; with --blend, a setting of the blend.",
)
def render(
    blend: Path | None,
    dataset: str | None,
    adapter: str | None,
    root: Path | None,
    limit: int,
    template: str | None,
    settings: tuple[str, ...],
) -> None:
    """Show conversations as text before anything is built, and what becomes of a dataset's first records."""
    from preprocess.views.preview import print_blend, print_rendered

    if blend is not None and adapter is None and root is None:
        print_blend(blend, only=dataset, limit=limit, template=template, settings=settings)
    elif blend is None and dataset is None and adapter is not None and root is not None:
        print_rendered(adapter, root, limit=limit, template=template or "visualchat", settings=settings)
    else:
        raise click.UsageError("expected either --blend, with --dataset or without, or --adapter and --root")


@cli.command()
def schema() -> None:
    """Print the JSON schema of blend.yaml, by which editors complete and check the file."""
    from dst.common.config import json_schema
    from preprocess.blend.config import Blend

    click.echo(json.dumps(json_schema(Blend), indent=2))


for _command in (overlap, diff, inspect, stats, template, view):
    cli.add_command(_command)


def main() -> None:
    run_command(cli, stopped="stopped; the same command resumes from here")


if __name__ == "__main__":
    main()
