"""`dsvl-train` in the process of a test."""

from __future__ import annotations

import sys

import pytest

from trainer import cli


def run_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    monkeypatch.setattr(sys, "argv", ["dsvl-train", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as error:
        code = int(error.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
