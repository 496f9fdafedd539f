"""What several commands of `dsvl-train` have."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from dst.common.cli import Command, warn
from dst.common.utf8_names import name_problem

TORCH_CHECKED = "DSVLTORCH_CHECKED"


class _Utf8Path(click.Path):
    """A path that the safetensors library can open: it refuses others after all work, in words of damage."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if problem := name_problem(path):
            self.fail(problem, param, ctx)
        return path


PATH = _Utf8Path()

allow_extension = click.option(
    "--allow-extension",
    "allow_extensions",
    multiple=True,
    metavar="MODULE:NAME",
    help="Code of another package that the model may name and run; may be given often.",
)
"""For commands that open a folder with a model"""


def _finite(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter(f"got {value}; expected a number of GiB")
    return value


def cache_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """For commands that answer questions."""
    gb = click.option(
        "--cache-gb",
        type=click.FloatRange(0),
        callback=_finite,
        default=1.0,
        show_default=True,
        help="Memory for images and prompts that may come again.",
    )
    folder = click.option("--cache-dir", type=PATH, help="A folder that keeps the cache of images.")
    return gb(folder(command))


class TrainCommand(Command):
    """A command of `dsvl-train`."""

    extras = ("train", "eval", "remote", "serve", "view")

    def warnings(self) -> Sequence[str]:
        if self.name not in ("config", "schema", "report", "run"):  # run checks its file first
            report_torch()
        return ()


def report_torch() -> None:
    """Import torch, and warn of what is wrong with it, once for a command and all processes that it starts.

    Raises ConfigError if it cannot be used.
    """
    if os.environ.get(TORCH_CHECKED):
        return
    os.environ[TORCH_CHECKED] = "1"
    from trainer.compat.torch import check_torch

    for line in check_torch():
        warn(line)
