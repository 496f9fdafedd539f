"""Options that several commands of `dsvl-prep` have."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import click

from dst.common.cli import Command
from dst.common.terminal_text import visible

PATH = click.Path(path_type=Path)


class PrepCommand(Command):
    """A command of `dsvl-prep`."""

    extras: ClassVar[Sequence[str]] = ("language", "ray", "remote", "video")


def location(text: str) -> str | Path:
    """A folder, or a URL, which stays text: a Path would take a slash from it."""
    return text if "://" in text else Path(text)


def build_location(command: Callable[..., None]) -> Callable[..., None]:
    """The build that a command reads, as its only argument or with --build."""

    @click.argument("named", metavar="[BUILD]", required=False, type=location)
    @click.option("--build", type=location, help="The build: a folder or a URL; the same as the argument BUILD.")
    @functools.wraps(command)
    def with_build(named: str | Path | None, build: str | Path | None, **options: Any) -> None:
        if (named is None) == (build is None):
            got = "none" if build is None else f"{visible(named)} and {visible(build)}"
            raise click.UsageError(f"the build: got {got}; expected one folder or URL, as BUILD or with --build")
        command(build=named if build is None else build, **options)

    return with_build
