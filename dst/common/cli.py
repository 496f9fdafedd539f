"""How a command ends: what a user can mend is one line each on stderr and an exit code, the rest is a traceback.

Exit codes: 2 if what was asked for cannot be (usage, configuration, template, tokenizer), 1 if it failed on the way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NoReturn

import click

from dst.common.installed_versions import report_installed
from dst.common.terminal_text import visible
from dst.errors import ConfigError, TemplateError, TokenizerError

Explain = Callable[[Exception], Sequence[str] | None]
Complain = Callable[[Sequence[str]], None]


def complain(problems: Sequence[str]) -> None:
    for problem in problems:
        click.echo(f"error: {visible(problem)}", err=True)


def warn(text: str) -> None:
    click.echo(f"warning: {visible(text)}", err=True)


class Command(click.Command):
    """A command that compares the installed packages with what was tested, before it works; `--help` does not."""

    extras: ClassVar[Sequence[str]] = ()
    """Of pyproject.toml, whose packages the command may use"""

    def invoke(self, ctx: click.Context) -> Any:
        report_installed(self.extras, self.warnings, warn)
        return super().invoke(ctx)

    def warnings(self) -> Sequence[str]:
        """What else to say once, before work starts; it may raise."""
        return ()


def run_command(cli: click.Command, *, stopped: str, explain: Explain, say: Complain = complain) -> None:
    """Run it with the program's arguments.

    stopped: what Ctrl-C is answered with. explain: what to say of an error of the program's own; None: it is a bug.
    """
    try:
        cli(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo(stopped, err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ConfigError as error:
        say(error.problems)
        sys.exit(2)
    except (TemplateError, TokenizerError) as error:
        say([str(error)])
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        _fail(error, explain, say)


def _fail(error: Exception, explain: Explain, say: Complain) -> NoReturn:
    problems = explain(error)
    if problems is None:
        if not isinstance(error, OSError):
            raise error
        problems = [f"{error.filename or 'the disk'}: {error.strerror or error}"]
    say(problems)
    sys.exit(1)
