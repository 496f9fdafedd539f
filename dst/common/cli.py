"""How a command ends: one line per problem on stderr and an exit code; a traceback only for a bug.

Exit codes (docs/errors.md): 0 done; 2 what was asked for cannot be done: usage, configuration, location, template,
tokenizer, missing package; 1 all else: missing or damaged data, a failure on the way, Ctrl-C.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import click

from dst.common.installed_versions import report_installed
from dst.common.os_errors import os_error_text
from dst.common.terminal_text import visible
from dst.errors import DsvlError

_SETTING = re.compile(r"[a-z_][\w.]*=.*", re.DOTALL)


def print_error(error: DsvlError) -> None:
    for line in error.lines():
        click.echo(f"error: {visible(line)}", err=True)


def warn(text: str) -> None:
    click.echo(f"warning: {visible(text)}", err=True)


def note(text: str) -> None:
    """A fact that the user may want to know, and that needs no action."""
    click.echo(f"note: {visible(text)}", err=True)


class PageFile(click.Path):
    """A page to write, in a folder that is there: asked before the work."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        page = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not page.parent.is_dir():
            self.fail(f"there is no folder {page.parent}; make it, or name a file in another one", param, ctx)
        return page


PAGE = PageFile()


class Command(click.Command):
    """A command that compares the installed packages with what was tested, before it works; `--help` does not."""

    extras: ClassVar[Sequence[str]] = ()
    """Of pyproject.toml, whose packages the command may use"""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)  # click empties its own
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            refused = [arg for arg in given if _SETTING.fullmatch(arg) and arg in error.message]
            if not refused or all(parameter.name != "settings" for parameter in self.params):
                raise
            raise click.UsageError(f"{error.message}; settings are given as --set {refused[0]}", ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        report_installed(self.extras, self.warnings, warn)
        return super().invoke(ctx)

    def warnings(self) -> Sequence[str]:
        """What else to say once, before work starts; it may raise."""
        return ()


def run_command(
    cli: click.Command,
    *,
    stopped: str,
    translate: Callable[[Exception], DsvlError | None] = lambda error: None,
    report: Callable[[DsvlError], None] = print_error,
) -> None:
    """Run it with the program's arguments, and exit with the error's code if it fails.

    stopped: the text for Ctrl-C. translate: the error to report for one of a library; None means it is a bug.
    """
    try:
        cli(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo(stopped, err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        known = error if isinstance(error, DsvlError) else translate(error)
        if known is None and isinstance(error, OSError):
            known = DsvlError(os_error_text(error))
        if known is None:
            raise
        report(known)
        sys.exit(known.exit_code)
