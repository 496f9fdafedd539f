"""What `dsvl-prep init` says of the blend file that it wrote."""

from __future__ import annotations

import os
from pathlib import Path

import click

from dst.common.cli import note
from dst.common.terminal_text import visible
from preprocess.blend.discover import Discovery

_SHOWN_FILES = 3


def print_draft(discovery: Discovery, out: Path, *, asks_for_tokenizer: bool = True) -> None:
    """Each dataset with its first files and what to check; what is not in the blend; the next step."""
    for dataset in discovery.datasets:
        names = [os.path.relpath(path, dataset.folder) for path in dataset.annotations]
        files = f": {', '.join(names[:_SHOWN_FILES])}" if names else ""
        more = f" and {len(names) - _SHOWN_FILES} more files" if len(names) > _SHOWN_FILES else ""
        click.echo(visible(f"found {dataset.adapter} in {dataset.folder}{files}{more}"))
        for line in dataset.notes:
            click.echo(visible(f"  {line}"))
    for file in discovery.unread:
        note(f"not in the blend: {file.path}: {file.reason}")
    then = "then set `tokenizer:`, and build" if asks_for_tokenizer else "then build"
    click.echo(visible(f"wrote {out}; look at it with: dsvl-prep render --blend {out}; {then}"))
