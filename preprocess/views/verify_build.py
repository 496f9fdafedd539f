"""`dsvl-prep verify`: whether every byte of a build is what its manifest says."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

import shards
from dst.common.progress import Progress
from dst.common.terminal_text import visible


def print_verified(build: str | Path, progress: Progress) -> bool:
    """Print what is wrong to stderr, or that nothing is. False if something is. Raises ShardError, LocationError."""
    opened = shards.open(build)
    total = sum(info.size + info.index_size for _, _, info in opened.manifest.shards())
    for path in opened.manifest.files:
        with contextlib.suppress(FileNotFoundError):  # verify will say so
            total += opened.store.size(path)
    with progress.step("verifying", total) as advance:
        verified = shards.verify(opened, progress=advance)
    for line in verified.notes:
        click.echo(f"note: {visible(line)}")
    for problem in verified.problems:
        click.echo(visible(problem), err=True)
    if verified.problems:
        click.echo(
            f"{visible(build)}: {len(verified.problems)} problems; remove the files named above and run the same "
            "dsvl-prep build: it makes just them again",
            err=True,
        )
        return False
    click.echo(
        f"{visible(build)}: sound; {verified.shards} shards, {verified.samples:,} samples, {verified.images:,} images, "
        f"{verified.size_bytes:,} bytes"
    )
    return True
