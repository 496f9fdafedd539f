"""What several commands of `dsvl-train` have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from dst.common.cli import Command

PATH = click.Path(path_type=Path)

allow_extension = click.option(
    "--allow-extension",
    "allow_extensions",
    multiple=True,
    metavar="MODULE:NAME",
    help="Code of another package that the model may name and run; may be given often.",
)
"""For commands that open a folder with a model"""


class TrainCommand(Command):
    """A command of `dsvl-train`."""

    extras = ("train", "eval", "remote", "view")

    def warnings(self) -> Sequence[str]:
        if self.name in ("config", "schema", "report"):
            return ()
        from trainer.compat.torch import check_torch

        return check_torch()
