"""dst.common.cli: what a mistake on the command line is answered with."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from dst.common.cli import Command


@click.command(cls=Command)
@click.option("--set", "settings", multiple=True)
def with_settings(settings: tuple[str, ...]) -> None:
    click.echo("; ".join(settings))


@click.command(cls=Command)
def without_settings() -> None: ...


@pytest.mark.parametrize("bare", ["schedule.steps=3", "seed=1", "model={a: b=c}"])
def test_a_setting_without_its_option_is_answered_with_the_right_spelling(bare: str) -> None:
    done = CliRunner().invoke(with_settings, ["--set", "a=1", bare])
    assert done.exit_code == 2
    assert done.output.rstrip().endswith(f"({bare}); settings are given as --set {bare}")


def test_settings_with_their_option_are_taken() -> None:
    done = CliRunner().invoke(with_settings, ["--set", "a=1", "--set", "b.c=2"])
    assert (done.exit_code, done.output) == (0, "a=1; b.c=2\n")


@pytest.mark.parametrize("arguments", [["a folder"], ["--sett", "a=1"], ["/x=1"]])
def test_another_mistake_is_not_taken_for_a_setting(arguments: list[str]) -> None:
    done = CliRunner().invoke(with_settings, arguments)
    assert (done.exit_code, "settings are given as" in done.output) == (2, False)


def test_a_command_without_settings_names_no_option_for_them() -> None:
    done = CliRunner().invoke(without_settings, ["a=1"])
    assert (done.exit_code, "settings are given as" in done.output) == (2, False)
