"""The command of `dsvl-prep` for templates of released models."""

from __future__ import annotations

from pathlib import Path

import click

from preprocess.cli_options import PATH, PrepCommand


@click.command(cls=PrepCommand)
@click.option("--from", "source", required=True, metavar="FOLDER", help="A model's folder, or its id on the hub.")
@click.option("--name", help="Which one, if the folder has several templates. [default: its default]")
@click.option(
    "--out", type=PATH, help="The file to write. [default: FOLDER.jinja here, if no built-in one is the same]"
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A value for a name that the template leaves open, such as date_string.",
)
@click.option(
    "--end-token", "add_end", is_flag=True, help="End answers with eos_token if the template ends them with no token."
)
def template(source: str, name: str | None, out: Path | None, settings: tuple[str, ...], add_end: bool) -> None:
    """Find the answers in a released model's chat template, and write a copy that marks them for training.

    The copy is checked: it renders the texts of the original, and trains each answer with its end token.
    """
    from preprocess.templates.copy import copy_template, write_copy
    from preprocess.views.template_report import print_copy

    copy = copy_template(source, variant=name, settings=settings, add_end=add_end)
    if out is None and copy.builtin is None:
        out = Path(f"{Path(source).resolve().name if Path(source).exists() else source.rsplit('/', 1)[-1]}.jinja")
    if out is not None:
        write_copy(copy.text, out)
    print_copy(copy, out)
