"""Commands of `dsvl-prep` that show samples."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

import click

from dst.common.cli import PAGE, note
from dst.common.terminal_text import json_line, visible
from dst.common.web_server import is_loopback
from preprocess.cli_options import PATH, PrepCommand, build_location

CHOICES = click.Choice(["random", "longest", "shortest", "most-images", "rejects"])


@click.command(cls=PrepCommand)
@build_location
@click.option("--dataset", help="Only samples of this dataset.")
@click.option("--split", type=click.Choice(["train", "eval"]), help="Only samples of this side.")
@click.option("--key", help="Only the sample with this key.")
@click.option("--limit", type=click.IntRange(min=1), default=3, show_default=True, help="How many samples.")
@click.option("--sample", "choice", type=CHOICES, help="With --html: which samples.  [default: the first]")
@click.option("--html", "page", type=PAGE, help="Write the samples with their images to this page instead.")
@click.option("--blend", type=PATH, help="With --sample rejects: the blend file, next to which paths of sources start.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with ids and labels.")
def inspect(
    build: str | Path,
    dataset: str | None,
    split: str | None,
    key: str | None,
    limit: int,
    choice: Literal["random", "longest", "shortest", "most-images", "rejects"] | None,
    page: Path | None,
    blend: Path | None,
    as_json: bool,
) -> None:
    """Show samples as the model will see them: what is trained in colour, each image with its name and size."""
    from preprocess.views.inspect import inspect_samples, print_sample

    if page is None:
        if choice is not None or blend is not None:
            raise click.UsageError("--sample and --blend: have no effect without --html; add --html FILE")
        for sample in inspect_samples(build, dataset=dataset, split=split, key=key, limit=limit):
            if as_json:
                click.echo(json_line(sample.to_json()))
            else:
                print_sample(sample)
        return
    if as_json:
        raise click.UsageError("--json and --html: expected one of them")
    from preprocess.viewer.export import write_samples_page
    from preprocess.viewer.source_records import bases_of

    bases = bases_of(build, blend)
    shown = write_samples_page(
        page, build, choice=choice, limit=limit, dataset=dataset, split=split, key=key, bases=bases
    )
    click.echo(f"{visible(page)}: {shown:,} {'rejects' if choice == 'rejects' else 'samples'}")


class _ViewCommand(PrepCommand):
    extras = ("remote", "view")


@click.command(cls=_ViewCommand)
@build_location
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free port.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--blend", type=PATH, help="The blend file of the build, next to which the paths of its sources start.")
def view(build: str | Path, port: int, host: str, blend: Path | None) -> None:
    """Look at a build in the browser: samples with their images, what is trained, rejects, packed sequences.

    The server only reads, and answers only this machine unless --host says otherwise. Ctrl-C ends it.
    """
    from preprocess.viewer.server import serve

    if not is_loopback(host):
        note(f"--host {host}: everybody who reaches this address can see the data")
    with suppress(KeyboardInterrupt):  # uvicorn raises it again after its shutdown, but not always
        serve(build, host=host, port=port, blend=blend, started=lambda address: _print_started(build, address))
    click.echo("stopped", err=True)


def _print_started(build: str | Path, address: str) -> None:
    click.echo(f"{visible(build)} is at {address} (Ctrl-C to stop)")
